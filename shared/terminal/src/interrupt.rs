//! Ctrl-C, SIGTERM and a closed terminal: the first one asks the program to stop where it can resume later, the second ends
//! the process at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// Whether the work was asked to stop.
#[derive(Debug, Clone)]
pub struct Interrupt {
    asked: Arc<AtomicBool>,
    signal: Arc<AtomicUsize>,
}

impl Interrupt {
    /// Starts listening for SIGINT, SIGTERM and SIGHUP; not for a SIGHUP that is ignored, which is how `nohup` asks
    /// that the closing of the terminal be survived.
    ///
    /// # Errors
    /// The system's, when it does not let this process handle a signal.
    pub fn listen() -> io::Result<Interrupt> {
        let asked = Arc::new(AtomicBool::new(false));
        let signal = Arc::new(AtomicUsize::new(0));
        for number in [SIGINT, SIGTERM, SIGHUP] {
            if number == SIGHUP && is_ignored(number) {
                continue;
            }
            // Actions run in this order: at the first signal `asked` is still false.
            flag::register_conditional_shutdown(number, 128 + number, Arc::clone(&asked))?;
            flag::register_usize(number, Arc::clone(&signal), number as usize)?;
            flag::register(number, Arc::clone(&asked))?;
        }
        Ok(Interrupt { asked, signal })
    }

    /// The exit code that the signal asks for (130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP), once there
    /// was one.
    pub fn requested(&self) -> Option<u8> {
        match self.signal.load(Ordering::Acquire) {
            0 => None,
            number => Some(128 + number as u8),
        }
    }

    /// A flag that is raised once the work was asked to stop.
    pub fn flag(&self) -> &AtomicBool {
        &self.asked
    }

    /// The same flag, for those who keep it.
    pub fn shared_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.asked)
    }
}

/// Whether this process was started with `signal` ignored.
fn is_ignored(signal: i32) -> bool {
    // SAFETY: an all-zero `sigaction` is a valid value, and a null new action only reads the present one into it.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}
