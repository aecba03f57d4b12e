//! How long a request is repeated.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};

use super::failure::{Failure, Kind};

/// The wait before the second try, and the longest one between two.
const WAITS: [Duration; 2] =
    [Duration::from_millis(if cfg!(test) { 5 } else { 100 }), Duration::from_secs(5)];
/// How often a request looks whether it is to be given up, and how long one may still take that could succeed.
const LOOK: Duration = Duration::from_millis(100);
const GRACE: Duration = Duration::from_secs(1);

/// How long to try.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience<'a> {
    pub(super) most: Duration,
    /// Raised when the program is to stop.
    pub(super) asked: Option<&'a AtomicBool>,
    /// Whether a first try is carried out even then: what is written has to come to an end.
    pub(super) finishes: bool,
}

impl Patience<'_> {
    fn is_over(&self) -> bool {
        self.asked.is_some_and(|asked| asked.load(Ordering::Relaxed))
    }

    /// Returns when the program is to stop.
    async fn over(&self) {
        while !self.is_over() {
            match self.asked {
                Some(_) => tokio::time::sleep(LOOK).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Returns when a try has to be given up.
    async fn given_up(&self, tries: u32) {
        if tries == 1 && self.finishes {
            std::future::pending::<()>().await;
        }
        self.over().await;
        tokio::time::sleep(GRACE).await;
    }
}

/// Makes `attempt`s until one succeeds, one fails in a way that another would, or `patience` is over.
pub(super) async fn repeat<T, F: Future<Output = Result<T, Failure>>>(
    patience: Patience<'_>,
    mut attempt: impl FnMut() -> F,
) -> Result<T, Failure> {
    let (start, mut wait) = (Instant::now(), WAITS[0]);
    let mut last = Failure::passing("no answer yet".to_owned());
    for tries in 1.. {
        if patience.is_over() && !(tries == 1 && patience.finishes) {
            return Err(last.unfinished());
        }
        let done = match select(pin!(attempt()), pin!(patience.given_up(tries))).await {
            Either::Left((done, _)) => done,
            Either::Right(_) => return Err(last.unfinished()),
        };
        match done {
            Err(failure) if failure.kind == Kind::Passing => {
                if start.elapsed() + wait > patience.most {
                    return Err(failure.after(tries, start.elapsed().as_secs()));
                }
                last = failure;
            }
            done => return done,
        }
        // Requests that failed together are not repeated together.
        let spread = f64::from(start.elapsed().subsec_nanos() % 1000) / 2000.0;
        select(pin!(tokio::time::sleep(wait.mul_f64(0.75 + spread))), pin!(patience.over())).await;
        wait = (wait * 2).min(WAITS[1]);
    }
    unreachable!("the tries do not end by themselves")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOURS: Duration = Duration::from_secs(10_000);

    fn passing<T>() -> Result<T, Failure> {
        Err(Failure::passing("the network is gone".to_owned()))
    }

    /// What becomes of attempts, the flag being raised during the one numbered `raised`.
    fn repeated<F: Future<Output = Result<u32, Failure>>>(
        raised: u32,
        finishes: bool,
        attempt: impl Fn(u32) -> F,
    ) -> (Result<u32, Failure>, u32) {
        let asked = AtomicBool::new(raised == 0);
        let patience = Patience { most: HOURS, asked: Some(&asked), finishes };
        let mut tries = 0;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let done = runtime.block_on(repeat(patience, || {
            tries += 1;
            if tries == raised {
                asked.store(true, Ordering::Relaxed);
            }
            attempt(tries)
        }));
        (done, tries)
    }

    #[test]
    fn a_program_that_is_to_stop_gives_up() {
        // Between tries, in the middle of one, and before the first.
        let (done, tries) = repeated(3, false, |_| async { passing() });
        let told = done.unwrap_err().to_string();
        assert!(told.contains("the network is gone") && told.contains("asked to stop"), "{told}");
        assert_eq!(tries, 3);
        let (done, tries) = repeated(1, false, |_| std::future::pending());
        assert!(done.unwrap_err().to_string().contains("no answer yet"));
        assert_eq!(tries, 1);
        let (done, tries) = repeated(0, false, |_| async { Ok(1) });
        assert!(done.is_err());
        assert_eq!(tries, 0);
    }

    #[test]
    fn what_is_written_finishes_while_it_can_be() {
        let slow = |_| async {
            tokio::time::sleep(GRACE + 2 * LOOK).await;
            Ok(7)
        };
        assert_eq!(repeated(0, true, slow), (Ok(7), 1));
        let (done, tries) = repeated(0, true, |_| async { passing() });
        assert!(done.is_err());
        assert_eq!(tries, 1);
        let (done, tries) = repeated(2, true, |tries| async move {
            if tries == 1 { passing() } else { std::future::pending().await }
        });
        assert!(done.is_err());
        assert_eq!(tries, 2);
    }
}
