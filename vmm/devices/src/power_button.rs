//! The power button of a hardware-reduced ACPI machine (ACPI 6.5, section 4.8.2.2.1.2): an interrupt, which the
//! generic event device turns into the button's notification. It has no registers.

use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::lifecycle::Lifecycle;

/// A power button. A press is an edge on its interrupt line: a guest that does not listen to it misses it, and presses
/// that come faster than the guest handles them are one.
pub struct PowerButton {
    line: EventFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    paused: bool,
    /// It was pressed while it was paused.
    pressed: bool,
}

impl PowerButton {
    /// A button that raises its interrupt by signalling `line`, which does not block.
    #[must_use]
    pub fn new(line: EventFd) -> Self {
        Self {
            line,
            state: Mutex::default(),
        }
    }

    /// Presses the button. Never waits. While the button is paused, a press waits for [`Lifecycle::resume`].
    pub fn press(&self) {
        let mut state = self.state();
        match state.paused {
            true => state.pressed = true,
            false => self.signal(),
        }
    }

    fn signal(&self) {
        // It only fails when the counter is full, and then the interrupt is pending already.
        let _ = self.line.write(1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lifecycle for PowerButton {
    fn reset(&self) {
        self.state().pressed = false;
    }

    fn pause(&self) {
        self.state().paused = true;
    }

    fn resume(&self) {
        let mut state = self.state();
        state.paused = false;
        if std::mem::take(&mut state.pressed) {
            self.signal();
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn button() -> (PowerButton, EventFd) {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        (PowerButton::new(line.try_clone().unwrap()), line)
    }

    /// The number of edges since the last call.
    fn edges(line: &EventFd) -> u64 {
        line.read().unwrap_or(0)
    }

    #[test]
    fn each_press_is_an_edge() {
        let (button, line) = button();
        assert_eq!(edges(&line), 0);
        for _ in 0..3 {
            button.press();
        }
        assert_eq!(edges(&line), 3);
    }

    #[test]
    fn presses_while_it_is_paused_are_one_when_it_is_resumed() {
        let (button, line) = button();
        button.pause();
        button.press();
        button.press();
        assert_eq!(edges(&line), 0);
        button.resume();
        assert_eq!(edges(&line), 1);

        button.pause();
        button.resume();
        assert_eq!(edges(&line), 0, "the press was delivered before");
    }

    #[test]
    fn a_reset_forgets_a_press_but_not_the_pause() {
        let (button, line) = button();
        button.pause();
        button.press();
        button.reset();
        button.press();
        assert_eq!(edges(&line), 0);
        button.reset();
        button.resume();
        assert_eq!(edges(&line), 0);
        button.press();
        assert_eq!(edges(&line), 1);
    }

    #[test]
    fn a_press_does_not_wait_for_a_line_that_nobody_listens_to() {
        let (button, line) = button();
        line.write(u64::MAX - 1).unwrap();
        button.press();
        assert_eq!(edges(&line), u64::MAX - 1);
    }
}
