//! Ctrl-C: the first ends the work in progress in good order, the second ends the process.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use crate::{CancelToken, Control};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// The control of everything that the program does: SIGINT and SIGTERM cancel it from now on.
pub fn control() -> Control {
    Control::default().with_cancel(token().clone())
}

/// Whether the program was told to stop.
pub fn told() -> bool {
    token().is_cancelled()
}

fn token() -> &'static CancelToken {
    static TOKEN: OnceLock<CancelToken> = OnceLock::new();
    TOKEN.get_or_init(|| {
        let told = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // Where a handler cannot be had, the signal ends the process as it did before.
            let _ = flag::register_conditional_shutdown(signal, 130, told.clone())
                .and_then(|_| flag::register(signal, told.clone()));
        }
        CancelToken::from(told)
    })
}
