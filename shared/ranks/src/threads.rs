//! Threads of one process as ranks.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::exchange::{Exchange, ExchangeError};

/// One of several ranks that are threads of one process. A rank that is dropped is lost to the others.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    meeting: Arc<Meeting>,
}

/// Where the ranks lay down what they give, and take what they are given.
#[derive(Debug)]
struct Meeting {
    ranks: usize,
    patience: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// What each rank has laid down.
    given: Vec<Option<Gift>>,
    /// Ranks that have taken what was laid down.
    taken: usize,
    /// Ranks that are gone.
    lost: Vec<usize>,
}

#[derive(Debug, Clone)]
struct Gift {
    operation: &'static str,
    bytes: Arc<[u8]>,
}

impl Threads {
    /// So many ranks, each to be given to a thread. A rank waits for the others as long as `patience`.
    pub fn new(ranks: usize, patience: Duration) -> Vec<Threads> {
        let state = State { given: vec![None; ranks], taken: 0, lost: Vec::new() };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let meeting = Arc::new(Meeting { ranks, patience, state, changed });
        (0..ranks).map(|rank| Threads { rank, meeting: Arc::clone(&meeting) }).collect()
    }

    /// Lays `bytes` down and returns what all ranks laid down.
    fn meet(&self, operation: &'static str, bytes: &[u8]) -> Result<Vec<Arc<[u8]>>, ExchangeError> {
        let error = |reason| ExchangeError { operation, reason };
        let meeting = &*self.meeting;
        let until = Instant::now() + meeting.patience;
        // The others may not have taken the last gifts yet.
        let mut state = meeting.wait(until, |state| state.given[self.rank].is_none()).map_err(error)?;
        state.given[self.rank] = Some(Gift { operation, bytes: bytes.into() });
        drop(state);
        meeting.changed.notify_all();
        let mut state =
            meeting.wait(until, |state| state.given.iter().all(Option::is_some)).map_err(error)?;
        let gifts: Vec<Gift> = state.given.iter().flatten().cloned().collect();
        state.taken += 1;
        if state.taken == meeting.ranks {
            state.taken = 0;
            state.given.fill(None);
            meeting.changed.notify_all();
        }
        drop(state);
        if let Some(other) =
            gifts.iter().position(|gift| (gift.operation, gift.bytes.len()) != (operation, bytes.len()))
        {
            let Gift { operation: theirs, bytes: their_bytes } = &gifts[other];
            return Err(error(format!(
                "rank {other} is at {theirs} of {} bytes, rank {} at {operation} of {} bytes",
                their_bytes.len(),
                self.rank,
                bytes.len()
            )));
        }
        Ok(gifts.into_iter().map(|gift| gift.bytes).collect())
    }
}

impl Meeting {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until `ready`. An error says which ranks are missing.
    fn wait(&self, until: Instant, ready: impl Fn(&State) -> bool) -> Result<MutexGuard<'_, State>, String> {
        let mut state = self.lock();
        loop {
            if ready(&state) {
                return Ok(state);
            }
            if let Some(rank) = state.lost.first() {
                return Err(format!("rank {rank} has ended"));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let absent = (0..self.ranks).filter(|rank| state.given[*rank].is_none());
                let absent: Vec<String> = absent.map(|rank| rank.to_string()).collect();
                return Err(format!("rank {} did not come within {:?}", absent.join(", "), self.patience));
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.meeting.lock().lost.push(self.rank);
        self.meeting.changed.notify_all();
    }
}

impl Exchange for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.meeting.ranks
    }

    fn all_to_all(&self, send: &[u8], receive: &mut [u8]) -> Result<(), ExchangeError> {
        let part = send.len() / self.ranks();
        let gifts = self.meet("an all-to-all", send)?;
        for (from, to) in gifts.iter().zip(receive.chunks_exact_mut(part.max(1))) {
            to.copy_from_slice(&from[self.rank * part..][..part]);
        }
        Ok(())
    }

    fn all_gather(&self, send: &[u8], receive: &mut [u8]) -> Result<(), ExchangeError> {
        let gifts = self.meet("an all-gather", send)?;
        for (from, to) in gifts.iter().zip(receive.chunks_exact_mut(send.len().max(1))) {
            to.copy_from_slice(from);
        }
        Ok(())
    }

    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<(), ExchangeError> {
        let gifts = self.meet("a broadcast", bytes)?;
        bytes.copy_from_slice(&gifts[root]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// What `work` returns on each of so many ranks.
    fn on_ranks<R: Send>(ranks: Vec<Threads>, work: impl Fn(&Threads) -> R + Sync) -> Vec<R> {
        std::thread::scope(|scope| {
            let run = |rank: Threads| scope.spawn(|| work(&{ rank }));
            let threads: Vec<_> = ranks.into_iter().map(run).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn bytes_go_where_they_belong_time_after_time() {
        for count in [1, 2, 3, 8] {
            on_ranks(Threads::new(count, PATIENCE), |ranks| {
                let own = ranks.rank() as u8;
                for round in 0..50u8 {
                    let send: Vec<u8> = (0..count as u8).flat_map(|to| [own, to, round]).collect();
                    let mut received = vec![0; send.len()];
                    ranks.all_to_all(&send, &mut received).unwrap();
                    let expected: Vec<u8> = (0..count as u8).flat_map(|from| [from, own, round]).collect();
                    assert_eq!(received, expected);
                    ranks.all_gather(&[own, round, 7], &mut received).unwrap();
                    let expected: Vec<u8> = (0..count as u8).flat_map(|from| [from, round, 7]).collect();
                    assert_eq!(received, expected);
                    let mut bytes = [own, round];
                    ranks.broadcast(count - 1, &mut bytes).unwrap();
                    assert_eq!(bytes, [count as u8 - 1, round]);
                }
            });
        }
    }

    #[test]
    fn a_rank_that_ends_early_is_named() {
        let told = on_ranks(Threads::new(3, PATIENCE), |ranks| {
            if ranks.rank() == 1 {
                return String::new();
            }
            ranks.all_gather(&[0], &mut [0; 3]).unwrap_err().to_string()
        });
        assert_eq!(told[0], "an all-gather with the other ranks failed: rank 1 has ended");
        assert_eq!(told[2], told[0]);
    }

    #[test]
    fn a_rank_that_does_not_come_is_named() {
        let mut ranks = Threads::new(2, Duration::from_millis(20));
        let _absent = ranks.pop();
        let told = ranks[0].broadcast(0, &mut [1]).unwrap_err().to_string();
        assert!(told.contains("rank 1 did not come within 20ms"), "{told}");
    }

    #[test]
    fn ranks_that_do_different_things_are_told() {
        let told = on_ranks(Threads::new(2, PATIENCE), |ranks| match ranks.rank() {
            0 => ranks.all_gather(&[0], &mut [0; 2]).unwrap_err().to_string(),
            _ => ranks.all_gather(&[0, 1], &mut [0; 4]).unwrap_err().to_string(),
        });
        assert!(told[0].contains("rank 1 is at an all-gather of 2 bytes"), "{told:?}");
    }
}
