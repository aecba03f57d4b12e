//! Which chunks a cache holds, which one goes when room is needed, and which one is fetched next.
//!
//! Training reads all chunks in one random order after another. What was read longest ago is then needed soonest, and the least
//! recently used chunk is the worst to throw away: a cache of half a store would hold 15 % of what is asked for. The most recently
//! used one is needed again in the next epoch only, wherever it lies there. So that one goes, the rest stays from epoch to
//! epoch, and a cache of half a store holds half of what is asked for.

use std::collections::{BTreeMap, HashMap, VecDeque};

/// A chunk of a store: numbers of the store in the cache, of the shard, and of the chunk in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) store: u32,
    pub(super) shard: u32,
    pub(super) chunk: u32,
}

/// What becomes of a demand for a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// It is there, and stays until it is released.
    Ready,
    /// Somebody fetches it.
    Wait,
    /// Whoever asks has to fetch it.
    Fetch,
}

#[derive(Debug)]
struct Slot {
    bytes: u64,
    is_here: bool,
    /// How many decode it now.
    pins: u32,
    /// When it was decoded last, if it was.
    used: Option<u64>,
}

/// The chunks of a cache.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: HashMap<Key, Slot>,
    /// Chunks that were decoded, by when that was.
    used: BTreeMap<u64, Key>,
    clock: u64,
    /// Bytes of all slots, chunks on their way included.
    bytes: u64,
    /// What is to be fetched, in order, and for which reader.
    queue: VecDeque<(u64, Key, u64)>,
    /// Chunks, here or on their way, that a reader will decode soon.
    ahead: HashMap<Key, u64>,
    ahead_bytes: u64,
}

impl Slots {
    /// Bytes of the chunks that are here or on their way.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Notes a chunk that an earlier process fetched.
    pub(super) fn found(&mut self, key: Key, bytes: u64) {
        self.add(key, bytes, true);
    }

    fn add(&mut self, key: Key, bytes: u64, is_here: bool) {
        if self.slots.insert(key, Slot { bytes, is_here, pins: 0, used: None }).is_none() {
            self.bytes += bytes;
        }
    }

    /// Asks for a chunk to decode it now.
    pub(super) fn claim(&mut self, key: Key, bytes: u64) -> Claim {
        match self.slots.get_mut(&key) {
            Some(slot) if slot.is_here => {
                slot.pins += 1;
                self.not_ahead(key);
                Claim::Ready
            }
            Some(_) => Claim::Wait,
            None => {
                self.add(key, bytes, false);
                Claim::Fetch
            }
        }
    }

    /// Ends a claim.
    pub(super) fn release(&mut self, key: Key) {
        let Some(slot) = self.slots.get_mut(&key) else { return };
        slot.pins = slot.pins.saturating_sub(1);
        if let Some(before) = slot.used.replace(self.clock) {
            self.used.remove(&before);
        }
        self.used.insert(self.clock, key);
        self.clock += 1;
    }

    /// A chunk is here.
    pub(super) fn arrived(&mut self, key: Key) {
        if let Some(slot) = self.slots.get_mut(&key) {
            slot.is_here = true;
        }
    }

    /// A chunk could not be fetched.
    pub(super) fn failed(&mut self, key: Key) {
        self.remove(key);
    }

    fn remove(&mut self, key: Key) {
        if let Some(slot) = self.slots.remove(&key) {
            self.bytes -= slot.bytes;
            if let Some(used) = slot.used {
                self.used.remove(&used);
            }
        }
        self.not_ahead(key);
    }

    fn not_ahead(&mut self, key: Key) {
        if self.ahead.remove(&key).is_some() {
            self.ahead_bytes -= self.slots.get(&key).map_or(0, |slot| slot.bytes);
        }
    }

    /// Takes the chunk out that goes first, if one may go.
    pub(super) fn evict(&mut self) -> Option<Key> {
        let may_go = |key: &Key, slot: &Slot| slot.is_here && slot.pins == 0 && !self.ahead.contains_key(key);
        let used = self.used.values().rev().find(|key| may_go(key, &self.slots[key])).copied();
        let unused = || self.slots.iter().find(|(key, slot)| may_go(key, slot)).map(|(key, _)| *key);
        let key = used.or_else(unused)?;
        self.remove(key);
        Some(key)
    }

    /// Notes what `reader` will decode, in order.
    pub(super) fn want(&mut self, reader: u64, chunks: impl IntoIterator<Item = (Key, u64)>) {
        self.queue.extend(chunks.into_iter().map(|(key, bytes)| (reader, key, bytes)));
    }

    /// Forgets what `reader` will decode.
    pub(super) fn forget(&mut self, reader: u64) {
        self.queue.retain(|(other, ..)| *other != reader);
        let gone: Vec<Key> =
            self.ahead.iter().filter(|(_, of)| **of == reader).map(|(key, _)| *key).collect();
        gone.into_iter().for_each(|key| self.not_ahead(key));
    }

    /// The next chunk to fetch, which is on its way from now on. `None` if nothing is wanted, or if what was fetched ahead fills
    /// `room` already.
    pub(super) fn next(&mut self, room: Option<u64>) -> Option<Key> {
        while let Some(&(reader, key, bytes)) = self.queue.front() {
            let known = self.slots.contains_key(&key);
            if room.is_some_and(|room| self.ahead_bytes + bytes > room) {
                return None;
            }
            self.queue.pop_front();
            if !known {
                self.add(key, bytes, false);
            }
            if self.ahead.insert(key, reader).is_none() {
                self.ahead_bytes += self.slots[&key].bytes;
            }
            if !known {
                return Some(key);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(chunk: u32) -> Key {
        Key { store: 0, shard: 0, chunk }
    }

    fn decode(slots: &mut Slots, chunk: u32) {
        if slots.claim(key(chunk), 10) == Claim::Fetch {
            slots.arrived(key(chunk));
            assert_eq!(slots.claim(key(chunk), 10), Claim::Ready);
        }
        slots.release(key(chunk));
    }

    #[test]
    fn what_was_decoded_last_goes_first_and_what_is_in_use_stays() {
        let mut slots = Slots::default();
        (0..3).for_each(|chunk| decode(&mut slots, chunk));
        slots.found(key(7), 10);
        assert_eq!(slots.claim(key(2), 10), Claim::Ready);
        assert_eq!(slots.bytes(), 40);
        assert_eq!(slots.evict(), Some(key(1)));
        assert_eq!(slots.evict(), Some(key(0)));
        assert_eq!(slots.evict(), Some(key(7)));
        assert_eq!(slots.evict(), None);
        slots.release(key(2));
        assert_eq!((slots.evict(), slots.bytes()), (Some(key(2)), 0));
    }

    #[test]
    fn a_cache_of_half_a_store_holds_half_of_every_epoch() {
        let (mut slots, mut fetched, epochs) = (Slots::default(), 0, 20);
        // 101 is prime: multiples of any number below are a permutation.
        for epoch in 1..=epochs {
            for step in 0..101 {
                let chunk = step * (epoch * 7 % 101) % 101;
                if slots.claim(key(chunk), 10) == Claim::Fetch {
                    fetched += u32::from(epoch > 1);
                    while slots.bytes() > 500 {
                        slots.evict().unwrap();
                    }
                    slots.arrived(key(chunk));
                    assert_eq!(slots.claim(key(chunk), 10), Claim::Ready);
                }
                slots.release(key(chunk));
            }
        }
        let share = f64::from(fetched) / f64::from(101 * (epochs - 1));
        assert!((0.4..0.6).contains(&share), "{share}");
    }

    #[test]
    fn chunks_are_fetched_in_order_and_as_far_ahead_as_there_is_room() {
        let mut slots = Slots::default();
        slots.found(key(1), 10);
        slots.want(5, (0..6).map(|chunk| (key(chunk), 10)));
        assert_eq!(
            (slots.next(Some(30)), slots.next(Some(30)), slots.next(Some(30))),
            (Some(key(0)), Some(key(2)), None)
        );
        // One that is on its way is waited for, and makes room once it is decoded.
        assert_eq!(slots.claim(key(0), 10), Claim::Wait);
        slots.arrived(key(0));
        assert_eq!(slots.claim(key(0), 10), Claim::Ready);
        assert_eq!((slots.next(Some(30)), slots.next(Some(30))), (Some(key(3)), None));
        // Nothing that is wanted goes.
        slots.arrived(key(2));
        slots.release(key(0));
        assert_eq!((slots.evict(), slots.evict()), (Some(key(0)), None));
        slots.forget(5);
        assert_eq!(slots.next(None), None);
        assert!(slots.evict().is_some());
    }

    #[test]
    fn a_chunk_that_did_not_come_is_asked_for_again() {
        let mut slots = Slots::default();
        slots.want(1, [(key(4), 10)]);
        assert_eq!(slots.next(None), Some(key(4)));
        slots.failed(key(4));
        assert_eq!((slots.bytes(), slots.claim(key(4), 10)), (0, Claim::Fetch));
    }
}
