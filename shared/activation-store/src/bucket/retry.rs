//! How long a request is repeated.

use std::time::{Duration, Instant};

use super::failure::{Failure, Kind};

/// The wait before the second try, and the longest one between two.
const WAITS: [Duration; 2] =
    [Duration::from_millis(if cfg!(test) { 5 } else { 100 }), Duration::from_secs(5)];

/// Makes `attempt`s until one succeeds, one fails in a way that another would, or `patience` is over.
pub(super) async fn repeat<T, F: Future<Output = Result<T, Failure>>>(
    patience: Duration,
    mut attempt: impl FnMut() -> F,
) -> Result<T, Failure> {
    let (start, mut wait) = (Instant::now(), WAITS[0]);
    for tries in 1.. {
        match attempt().await {
            Err(failure) if failure.kind == Kind::Passing => {
                if start.elapsed() + wait > patience {
                    return Err(failure.after(tries, start.elapsed().as_secs()));
                }
            }
            done => return done,
        }
        // Requests that failed together are not repeated together.
        let spread = f64::from(start.elapsed().subsec_nanos() % 1000) / 2000.0;
        tokio::time::sleep(wait.mul_f64(0.75 + spread)).await;
        wait = (wait * 2).min(WAITS[1]);
    }
    unreachable!("the tries do not end by themselves")
}
