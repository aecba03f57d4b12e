//! Threads whose death is an error for whoever waits for their work.
//!
//! A thread that panics hangs up its channels, and a hung-up channel looks like one whose sender has sent everything. Whoever
//! takes that for the end of the work continues with half of it. Here, an end counts as the end only if the worker returned;
//! a worker that panicked is [`Died`], with its reason:
//!
//! - [`spawn`] and [`spawn_scoped`] start threads that are joined for their results.
//! - [`Source`] is a thread that sends one value after another.
//! - [`task`] wraps work for another thread, such as a thread pool's, where a panic would end the program.
//! - [`catch`] wraps work on the current thread.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};
use std::time::Duration;

/// A worker panicked. (Rust has already printed where in the program, to standard error.)
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a fault of this program, not of its input alone, ended the {worker}: {reason}")]
pub struct Died {
    /// The worker's task: "reading of text".
    pub worker: String,
    /// Its panic message.
    pub reason: String,
}

impl Died {
    fn of(worker: &str, panic: &(dyn Any + Send)) -> Died {
        let text = panic.downcast_ref::<&str>().copied();
        let reason = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Died { worker: worker.to_owned(), reason: reason.unwrap_or("it gave no reason").to_owned() }
    }
}

/// Runs `body` on this thread.
///
/// # Errors
/// If it panics. Values that it shares with others then keep whatever state it left them in.
pub fn catch<T>(worker: &str, body: impl FnOnce() -> T) -> Result<T, Died> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|panic| Died::of(worker, &*panic))
}

/// A thread.
#[derive(Debug)]
pub struct Worker<T> {
    name: String,
    thread: JoinHandle<T>,
}

/// Starts a thread.
///
/// # Errors
/// If the system cannot start another thread.
pub fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Worker<T>> {
    let thread = Builder::new().name(name.to_owned()).spawn(body)?;
    Ok(Worker { name: name.to_owned(), thread })
}

impl<T> Worker<T> {
    /// Waits for the thread's end.
    ///
    /// # Errors
    /// If the thread panicked.
    pub fn join(self) -> Result<T, Died> {
        self.thread.join().map_err(|panic| Died::of(&self.name, &*panic))
    }
}

/// A thread that can borrow from its scope. If it panics and nobody joins it, the scope panics.
#[derive(Debug)]
pub struct ScopedWorker<'scope, T> {
    name: String,
    thread: ScopedJoinHandle<'scope, T>,
}

/// Starts a thread in a scope.
///
/// # Errors
/// If the system cannot start another thread.
pub fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    body: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedWorker<'scope, T>> {
    let thread = Builder::new().name(name.to_owned()).spawn_scoped(scope, body)?;
    Ok(ScopedWorker { name: name.to_owned(), thread })
}

impl<T> ScopedWorker<'_, T> {
    /// Waits for the thread's end.
    ///
    /// # Errors
    /// If the thread panicked.
    pub fn join(self) -> Result<T, Died> {
        self.thread.join().map_err(|panic| Died::of(&self.name, &*panic))
    }
}

/// The result of waiting for a while.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<T> {
    /// A value.
    Value(T),
    /// None yet.
    Waiting,
    /// There are no more values.
    End,
}

/// A thread that produces values, a few ahead of its reader. It ends by itself once the `Source` is dropped.
#[derive(Debug)]
pub struct Source<T> {
    values: Receiver<T>,
    /// `None` once it was joined.
    worker: Option<Worker<()>>,
}

impl<T: Send + 'static> Source<T> {
    /// Starts the thread, which sends up to `ahead` values more than were taken. `body` returns when there are no more,
    /// and when sending fails: then nobody wants them.
    ///
    /// # Errors
    /// If the system cannot start another thread.
    pub fn start(
        name: &str,
        ahead: usize,
        body: impl FnOnce(&SyncSender<T>) + Send + 'static,
    ) -> io::Result<Source<T>> {
        let (send, values) = sync_channel(ahead);
        let worker = spawn(name, move || body(&send))?;
        Ok(Source { values, worker: Some(worker) })
    }

    /// The next value if there is one within `patience`.
    ///
    /// # Errors
    /// If the thread panicked and there would have been more values; reported once.
    pub fn next_within(&mut self, patience: Duration) -> Result<Next<T>, Died> {
        match self.values.recv_timeout(patience) {
            Ok(value) => Ok(Next::Value(value)),
            Err(RecvTimeoutError::Timeout) => Ok(Next::Waiting),
            Err(RecvTimeoutError::Disconnected) => {
                self.worker.take().map_or(Ok(()), Worker::join)?;
                Ok(Next::End)
            }
        }
    }
}

/// The pending result of a [`task`].
#[derive(Debug)]
pub struct Answer<T> {
    name: String,
    answer: Receiver<Result<T, Died>>,
}

/// Work for another thread, and its pending result. The work itself never panics.
pub fn task<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> (impl FnOnce() + Send + 'static, Answer<T>) {
    let (send, answer) = sync_channel(1);
    let worker = name.to_owned();
    let work = move || {
        // Nobody may be waiting for it any more.
        let _ = send.send(catch(&worker, body));
    };
    (work, Answer { name: name.to_owned(), answer })
}

impl<T> Answer<T> {
    /// An answer that is available already.
    pub fn ready(value: T) -> Answer<T> {
        let (send, answer) = sync_channel(1);
        let _ = send.send(Ok(value)); // the queue has room for it
        Answer { name: String::new(), answer }
    }

    /// The answer if it arrives within `patience`, else `None`.
    ///
    /// # Errors
    /// If the task panicked, or was dropped without being run.
    pub fn within(&self, patience: Duration) -> Result<Option<T>, Died> {
        match self.answer.recv_timeout(patience) {
            Ok(answer) => answer.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(Died { worker: self.name.clone(), reason: "it was never done".to_owned() })
            }
        }
    }
}

/// The examples of the README, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn died<T>(worker: &str, reason: &str) -> Result<T, Died> {
        Err(Died { worker: worker.to_owned(), reason: reason.to_owned() })
    }

    #[test]
    fn a_joined_thread_gives_its_result_or_its_reason() {
        assert_eq!(spawn("count", || 3).unwrap().join(), Ok(3));
        let number = 7;
        assert_eq!(
            spawn("count", move || panic!("no {number}")).unwrap().join(),
            died::<()>("count", "no 7")
        );
        std::thread::scope(|scope| {
            assert_eq!(spawn_scoped(scope, "count", || number).unwrap().join(), Ok(7));
            let dead = spawn_scoped(scope, "count", || panic!("no")).unwrap();
            assert_eq!(dead.join(), died::<()>("count", "no"));
        });
        assert_eq!(catch("count", || panic!("no")), died::<()>("count", "no"));
        assert_eq!(catch("count", || std::panic::panic_any(3)), died::<()>("count", "it gave no reason"));
    }

    #[test]
    fn a_source_that_dies_is_no_source_that_ends() {
        let two = |send: &SyncSender<i32>| (1..3).for_each(|value| send.send(value).unwrap());
        let mut ends = Source::start("count", 1, two).unwrap();
        let mut dies = Source::start("count", 1, move |send| {
            two(send);
            panic!("no third");
        })
        .unwrap();
        for source in [&mut ends, &mut dies] {
            assert_eq!(source.next_within(LONG), Ok(Next::Value(1)));
            assert_eq!(source.next_within(LONG), Ok(Next::Value(2)));
        }
        assert_eq!(ends.next_within(LONG), Ok(Next::End));
        assert_eq!(ends.next_within(LONG), Ok(Next::End));
        assert_eq!(dies.next_within(LONG), died("count", "no third"));
    }

    #[test]
    fn a_source_can_keep_one_waiting() {
        let (go, wait) = sync_channel(0);
        let mut source = Source::start("count", 1, move |send| {
            wait.recv().unwrap();
            send.send(1).unwrap();
        })
        .unwrap();
        assert_eq!(source.next_within(Duration::from_millis(1)), Ok(Next::Waiting));
        go.send(()).unwrap();
        assert_eq!(source.next_within(LONG), Ok(Next::Value(1)));
    }

    #[test]
    fn a_task_answers_also_if_it_dies_or_is_never_done() {
        let (work, answer) = task("sum", || 3);
        assert_eq!(answer.within(Duration::ZERO), Ok(None));
        work();
        assert_eq!(answer.within(LONG), Ok(Some(3)));
        let (work, answer) = task("sum", || -> i32 { panic!("no") });
        work();
        assert_eq!(answer.within(LONG), died("sum", "no"));
        let (work, answer) = task("sum", || 3);
        drop(work);
        assert_eq!(answer.within(LONG), died("sum", "it was never done"));
        assert_eq!(Answer::ready(3).within(LONG), Ok(Some(3)));
    }
}
