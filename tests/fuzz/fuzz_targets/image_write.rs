//! Writing to a hostile image, and over hostile images. Where the image was consistent before, it is afterwards, and holds what was
//! written.

#![no_main]

use bulkhead_fuzz::host::Host;
use bulkhead_fuzz::input::Input;
use bulkhead_fuzz::mended::is_harmless;
use bulkhead_fuzz::program::Session;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let input = Input::of(bytes);
    let host = Host::new(&input);
    let sound = host.damaged() == Some(false);
    let opened = match input.is_untouched {
        true => Session::open(&host, input.writable(), sound),
        false => Session::open_shared(&host, input.writable(), sound),
    };
    let Some(mut session) = opened else {
        return;
    };
    for step in &input.steps {
        assert!(
            !input.is_untouched || !host.is_marked_corrupt(),
            "a sound image is said to be corrupt"
        );
        // What a full disk or a damaged table refuses is refused; the rest goes on.
        let Some(next) = session.change(*step) else {
            return;
        };
        session = next;
        step.read(session.image());
    }
    let sound = session.is_sound();
    if session.close() && sound {
        let found = host.check();
        let unharmed = found
            .as_ref()
            .is_some_and(|found| match input.is_untouched {
                true => found.is_sound(),
                false => is_harmless(found),
            });
        assert!(unharmed, "writing damaged a sound image: {found:?}");
    }
});
