//! Writing to a hostile image, and over hostile images. Where the image was consistent before, it is afterwards, and holds what was
//! written.

#![no_main]

use bulkhead_fuzz::host::Host;
use bulkhead_fuzz::input::Input;
use bulkhead_fuzz::program::Session;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let input = Input::of(bytes);
    let host = Host::new(&input);
    let sound = host.damaged() == Some(false);
    let Some(mut session) = Session::open(&host, input.writable(), sound) else {
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
    if session.close() && sound {
        assert_eq!(host.damaged(), Some(false), "writing damaged a sound image");
    }
});
