//! What ends a call: see the header.

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

use super::{Object, Outcome, argument, find, guard, keep, no_handle, put, sized};
use crate::control::{CancelToken, Control};

thread_local! {
    static IN_USE: RefCell<Control> = RefCell::default();
}

/// What the calls of this thread are done under.
pub(super) fn control() -> Control {
    IN_USE.with(|control| match control.try_borrow() {
        Ok(control) => control.clone(),
        Err(_) => Control::default(),
    })
}

/// See the header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PrefoldControlOptions {
    struct_size: usize,
    timeout_seconds: f64,
    progress: Option<extern "C" fn(*mut c_void, usize, usize)>,
    user: *mut c_void,
}

/// The caller's pointer, which is handed back and never read.
struct User(*mut c_void);

// SAFETY: prefold does not read what the pointer points to; the header says from which threads the caller
// gets it back.
unsafe impl Send for User {}
// SAFETY: as above.
unsafe impl Sync for User {}

impl User {
    fn pointer(&self) -> *mut c_void {
        self.0
    }
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_control_open(
    options: *const PrefoldControlOptions,
    out: *mut u64,
) -> i32 {
    guard(|| {
        put(out, 0, "out")?;
        let none = PrefoldControlOptions {
            struct_size: 0,
            timeout_seconds: 0.0,
            progress: None,
            user: std::ptr::null_mut(),
        };
        let given = sized(options, none, "options")?;
        let token = CancelToken::default();
        let mut control = Control::default().with_cancel(token.clone());
        if given.timeout_seconds != 0.0 {
            let timeout = Duration::try_from_secs_f64(given.timeout_seconds)
                .map_err(|error| argument(format!("timeout_seconds: {error}")))?;
            control = control.with_timeout(timeout);
        }
        if let Some(progress) = given.progress {
            let user = User(given.user);
            control = control.with_progress(move |p| progress(user.pointer(), p.done, p.total));
        }
        put(
            out,
            keep(Object::Control(Arc::new((token, control)))),
            "out",
        )
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_control_cancel(handle: u64) -> i32 {
    guard(|| {
        open(handle)?.0.cancel();
        Ok(())
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_control_use(handle: u64) -> i32 {
    guard(|| {
        let control = match handle {
            0 => Control::default(),
            handle => open(handle)?.1.clone(),
        };
        IN_USE.with(|in_use| in_use.replace(control));
        Ok(())
    })
}

fn open(handle: u64) -> Outcome<Arc<(CancelToken, Control)>> {
    match find(handle) {
        Some(Object::Control(control)) => Ok(control),
        _ => Err(no_handle(handle, "control")),
    }
}
