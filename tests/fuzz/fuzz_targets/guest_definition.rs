//! Reading a guest's definition, whatever a file has in it, and changing one as verbs do: what is read is what is written, and a change
//! changes nothing else.

#![no_main]

// `bulkhead` is a program without a library. This is its parser, which needs nothing else of it.
#[path = "../../../vmm/cli/src/guest/definition/mod.rs"]
#[allow(dead_code, unused_imports, reason = "not all of it is tried here")]
mod definition;

use bulkhead_mac::MacAddr;
use definition::{Definition, MetadataChange, Text, parse, write};
use libfuzzer_sys::fuzz_target;
use uuid::Uuid;

fuzz_target!(|bytes: &[u8]| {
    let read = match parse(bytes) {
        Ok(read) => read,
        Err(wrong) => {
            let lines = bytes.iter().filter(|&&byte| byte == b'\n').count() + 1;
            assert!((1..=lines).contains(&wrong.line), "{wrong}");
            assert!((1..=bytes.len() + 1).contains(&wrong.column), "{wrong}");
            return;
        }
    };
    let written = write(&read).expect("its texts are UTF-8");
    let again = parse(written.as_bytes());
    assert_eq!(again.as_ref(), Ok(&read), "{written}");
    change(bytes, &read);
});

/// Changes everything there is a verb for.
fn change(bytes: &[u8], read: &Definition) {
    let (mut text, mut wanted) = Text::parse(bytes).expect("it was read before");
    assert_eq!(&wanted, read);
    wanted.name = "renamed".to_owned();
    text.set_name(&wanted.name);
    wanted.uuid = Some(Uuid::from_u128(1));
    text.set_uuid(Uuid::from_u128(1));
    for (index, net) in (0..=u8::MAX).zip(&mut wanted.nets) {
        let mac = MacAddr::new([0x52, 0x54, 0, 0, 0, index]);
        net.mac = Some(mac);
        text.set_mac(index.into(), mac);
    }
    if wanted.nets.len() > 256 {
        // The others may have one of these.
        return;
    }
    wanted.autostart = !wanted.autostart;
    text.set_autostart(wanted.autostart);
    let uris: Vec<_> = wanted.metadata.keys().cloned().collect();
    let removed = uris
        .into_iter()
        .skip(1)
        .map(|uri| MetadataChange::Element { uri, text: None });
    let texts = [
        MetadataChange::Title(None),
        MetadataChange::Description(Some("'\"\\\n".to_owned())),
        MetadataChange::Element {
            uri: "a.b".to_owned(),
            text: Some("#".to_owned()),
        },
    ];
    for change in removed.chain(texts) {
        text.set_metadata(&change);
        wanted.set_metadata(change);
    }
    let (after, changed) = text.finish().expect("each change is valid");
    assert_eq!(changed, wanted, "{after}");
}
