//! Documents of tokens in, contexts of a fixed length out.
//!
//! The rule (the one of `mats_sae_training`, which made the reference activations): a BOS in front of
//! each document; documents are concatenated; a document that overflows a context goes on in the next
//! one after that context's own BOS. So every context starts with a BOS. A document that ends exactly
//! at a context's end leaves nothing behind: the next context starts with the next document's BOS, once.

/// Cuts a stream of documents into contexts of `length` tokens.
#[derive(Debug)]
pub(crate) struct Packer {
    bos: u32,
    length: usize,
    /// The context that is being filled: fewer than `length` tokens.
    open: Vec<u32>,
}

impl Packer {
    /// A packer of contexts of `length` tokens (at least 2: a BOS and something to say).
    pub(crate) fn new(bos: u32, length: usize) -> Packer {
        assert!(length >= 2, "a context of {length} tokens has no room beside its BOS");
        Packer { bos, length, open: Vec::with_capacity(length) }
    }

    /// Adds a document's tokens (without BOS) and appends every context this completes to `contexts`
    /// (`[n, length]`, row-major). An empty document adds nothing.
    pub(crate) fn push(&mut self, document: &[u32], contexts: &mut Vec<u32>) {
        let mut rest = document;
        if rest.is_empty() {
            return;
        }
        self.add(self.bos, contexts);
        while !rest.is_empty() {
            if self.open.is_empty() {
                self.open.push(self.bos);
            }
            let (fits, later) = rest.split_at(rest.len().min(self.length - self.open.len()));
            self.open.extend_from_slice(fits);
            rest = later;
            self.close_if_full(contexts);
        }
    }

    fn add(&mut self, token: u32, contexts: &mut Vec<u32>) {
        self.open.push(token);
        self.close_if_full(contexts);
    }

    fn close_if_full(&mut self, contexts: &mut Vec<u32>) {
        if self.open.len() == self.length {
            contexts.append(&mut self.open);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOS: u32 = 0;

    fn pack(length: usize, documents: &[&[u32]]) -> (Vec<Vec<u32>>, usize) {
        let mut packer = Packer::new(BOS, length);
        let mut contexts = Vec::new();
        for document in documents {
            packer.push(document, &mut contexts);
        }
        (contexts.chunks(length).map(<[u32]>::to_vec).collect(), packer.open.len())
    }

    #[test]
    fn documents_are_joined_with_a_bos_in_front_of_each() {
        let (contexts, rest) = pack(6, &[&[1, 2], &[3, 4], &[5]]);
        assert_eq!(contexts, [[BOS, 1, 2, BOS, 3, 4]]);
        assert_eq!(rest, 2);
    }

    #[test]
    fn a_document_that_overflows_goes_on_after_the_next_contexts_own_bos() {
        let (contexts, rest) = pack(4, &[&[1, 2, 3, 4, 5, 6, 7]]);
        assert_eq!(contexts, [[BOS, 1, 2, 3], [BOS, 4, 5, 6]]);
        assert_eq!(rest, 2);
    }

    #[test]
    fn a_document_that_ends_with_its_context_is_followed_by_one_bos() {
        let (contexts, rest) = pack(4, &[&[1, 2, 3], &[4, 5, 6], &[7]]);
        assert_eq!(contexts, [[BOS, 1, 2, 3], [BOS, 4, 5, 6]]);
        assert_eq!(rest, 2);
    }

    #[test]
    fn a_documents_bos_may_be_the_last_token_of_a_context() {
        let (contexts, _) = pack(4, &[&[1, 2], &[3, 4, 5]]);
        assert_eq!(contexts, [[BOS, 1, 2, BOS], [BOS, 3, 4, 5]]);
    }

    #[test]
    fn empty_documents_add_nothing() {
        assert_eq!(pack(3, &[&[], &[1, 2], &[]]), pack(3, &[&[1, 2]]));
    }

    #[test]
    fn every_context_starts_with_a_bos_and_no_token_is_lost() {
        let documents: Vec<Vec<u32>> =
            (0..200_u32).map(|i| (0..i * 7 % 31).map(|j| 1 + i * 31 + j).collect()).collect();
        for length in 2..20 {
            let slices: Vec<&[u32]> = documents.iter().map(Vec::as_slice).collect();
            let (contexts, rest) = pack(length, &slices);
            assert!(contexts.iter().all(|context| context[0] == BOS));
            let packed: Vec<u32> = contexts.iter().flatten().copied().filter(|&t| t != BOS).collect();
            let all: Vec<u32> = documents.iter().flatten().copied().collect();
            assert_eq!(packed, all[..packed.len()]);
            assert!(all.len() - packed.len() <= rest, "at most the open context is missing");
        }
    }
}
