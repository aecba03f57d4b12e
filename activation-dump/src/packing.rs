//! Packs documents of tokens into contexts of a fixed length.
//!
//! The rule is that of `mats_sae_training`, which made the reference activations. A BOS precedes each document, and the
//! documents are concatenated. A document that overflows a context continues in the next one, after that context's own
//! BOS, so every context starts with a BOS. A document that ends exactly at the end of a context leaves nothing over: the
//! next context starts with the next document's BOS, once.

/// Cuts a stream of documents into contexts of `length` tokens.
#[derive(Debug)]
pub(crate) struct Packer {
    bos: u32,
    length: usize,
    /// The current context: fewer than `length` tokens.
    open: Vec<u32>,
    /// A document has begun but has no token yet.
    at_start: bool,
}

impl Packer {
    /// A packer of contexts of `length` tokens (at least 2: a BOS and one more).
    pub(crate) fn new(bos: u32, length: usize) -> Packer {
        assert!(length >= 2, "a context of {length} tokens has no room beside its BOS");
        Packer { bos, length, open: Vec::with_capacity(length), at_start: true }
    }

    /// Adds a document's tokens (without BOS) and appends every context this completes to `contexts`
    /// (`[n, length]`, row-major). An empty document adds nothing.
    pub(crate) fn push(&mut self, document: &[u32], contexts: &mut Vec<u32>) {
        self.at_start = true;
        self.extend(document, contexts);
    }

    /// Adds a piece of a stream in which every BOS begins a document, and so does the piece if it `begins` its
    /// stream; returns the documents begun that have a token.
    pub(crate) fn push_stream(&mut self, piece: &[u32], begins: bool, contexts: &mut Vec<u32>) -> u64 {
        let (bos, mut documents) = (self.bos, 0);
        self.at_start |= begins;
        for (index, run) in piece.split(|&token| token == bos).enumerate() {
            self.at_start |= index > 0;
            documents += u64::from(self.at_start && !run.is_empty());
            self.extend(run, contexts);
        }
        documents
    }

    /// Adds a part of a document, its first one if it `begins` it; returns whether these are its first tokens.
    pub(crate) fn push_part(&mut self, part: &[u32], begins: bool, contexts: &mut Vec<u32>) -> bool {
        self.at_start |= begins;
        let first = self.at_start && !part.is_empty();
        self.extend(part, contexts);
        first
    }

    /// Whether the last document that began has no token yet.
    pub(crate) fn is_at_start(&self) -> bool {
        self.at_start
    }

    /// More tokens of the last document that began.
    fn extend(&mut self, tokens: &[u32], contexts: &mut Vec<u32>) {
        let mut rest = tokens;
        if rest.is_empty() {
            return;
        }
        if std::mem::take(&mut self.at_start) {
            self.add(self.bos, contexts);
        }
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
    fn an_overflowing_document_continues_after_the_next_bos() {
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
    fn a_stream_with_bos_between_documents_packs_like_documents() {
        let documents: Vec<Vec<u32>> =
            (0..100_u32).map(|i| (0..i * 5 % 17).map(|j| 1 + i * 17 + j).collect()).collect();
        let slices: Vec<&[u32]> = documents.iter().map(Vec::as_slice).collect();
        let in_front: Vec<u32> = slices.iter().flat_map(|document| [&[BOS], *document].concat()).collect();
        let behind: Vec<u32> = slices.iter().flat_map(|document| [*document, &[BOS]].concat()).collect();
        let expected = pack(8, &slices);
        for stream in [in_front, behind] {
            for piece in [1, 3, 50, stream.len()] {
                let mut packer = Packer::new(BOS, 8);
                let (mut contexts, mut begun) = (Vec::new(), 0);
                for (index, tokens) in stream.chunks(piece).enumerate() {
                    begun += packer.push_stream(tokens, index == 0, &mut contexts);
                }
                assert_eq!(contexts, expected.0.concat());
                assert_eq!(packer.open.len(), expected.1);
                assert_eq!(begun, documents.iter().filter(|document| !document.is_empty()).count() as u64);
            }
        }
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
