//! Changes of a definition's text, which keep its comments and its order.

use bulkhead_mac::MacAddr;
use toml_edit::{DocumentMut, Item, Table, TableLike, Value};
use uuid::Uuid;

use super::text::{self, Wrong};
use super::{Definition, MetadataChange};

/// The text of a definition.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    document: DocumentMut,
}

impl Text {
    /// Reads a text that is a valid definition.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<(Self, Definition), Wrong> {
        let definition = text::parse(bytes)?;
        let text = String::from_utf8_lossy(bytes);
        // `text::parse` has found it to be TOML.
        let document = text.parse().unwrap_or_default();
        Ok((Self { document }, definition))
    }

    pub(crate) fn set_name(&mut self, name: &str) {
        set(self.document.as_table_mut(), "name", name);
    }

    /// Sets the UUID. A new one stands after the name.
    pub(crate) fn set_uuid(&mut self, uuid: Uuid) {
        let root = self.document.as_table_mut();
        let is_new = !root.contains_key("uuid");
        set(root, "uuid", uuid.to_string());
        if is_new {
            put_after(root, "uuid", "name");
        }
    }

    /// Sets the address of a network card.
    pub(crate) fn set_mac(&mut self, index: usize, mac: MacAddr) {
        let net: Option<&mut dyn TableLike> = match self.document.get_mut("nets") {
            Some(Item::ArrayOfTables(nets)) => nets.get_mut(index).map(|net| net as _),
            Some(Item::Value(Value::Array(nets))) => nets
                .get_mut(index)
                .and_then(Value::as_inline_table_mut)
                .map(|net| net as _),
            _ => None,
        };
        if let Some(net) = net {
            set(net, "mac", mac.to_string());
        }
    }

    pub(crate) fn set_autostart(&mut self, on: bool) {
        set(self.document.as_table_mut(), "autostart", on);
    }

    /// Changes a text about the guest.
    pub(crate) fn set_metadata(&mut self, change: &MetadataChange) {
        let root = self.document.as_table_mut();
        match change {
            MetadataChange::Title(text) => set_or_remove(root, "title", text.as_deref()),
            MetadataChange::Description(text) => {
                set_or_remove(root, "description", text.as_deref());
            }
            MetadataChange::Element { uri, text } => {
                let metadata = root
                    .entry("metadata")
                    .or_insert_with(|| Item::Table(Table::new()));
                if let Some(metadata) = metadata.as_table_like_mut() {
                    set_or_remove(metadata, uri, text.as_deref());
                    if metadata.is_empty() {
                        root.remove("metadata");
                    }
                }
            }
        }
    }

    /// The text as it is now, and what it says.
    ///
    /// # Errors
    /// When a change has made it invalid.
    pub(crate) fn finish(&self) -> Result<(String, Definition), Wrong> {
        let text = self.document.to_string();
        let definition = text::parse(text.as_bytes())?;
        Ok((text, definition))
    }
}

/// Sets a value. The comment behind an old one stays.
fn set(table: &mut dyn TableLike, key: &str, value: impl Into<Value>) {
    let mut value = value.into();
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        None => {
            table.insert(key, Item::Value(value));
        }
    }
}

fn set_or_remove(table: &mut dyn TableLike, key: &str, text: Option<&str>) {
    match text {
        Some(text) => set(table, key, text),
        None => {
            table.remove(key);
        }
    }
}

/// Moves a key behind another one.
fn put_after(table: &mut Table, key: &str, other: &str) {
    let mut order: Vec<String> = table.iter().map(|(name, _)| name.to_owned()).collect();
    order.retain(|name| name != key);
    let at = order.iter().position(|name| name == other);
    order.insert(at.map_or(0, |at| at + 1), key.to_owned());
    let place = |name: &str| order.iter().position(|known| known == name);
    table.sort_values_by(|a, _, b, _| place(a.get()).cmp(&place(b.get())));
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr::new([0x52, 0x54, 0, 0, 0, 9]);

    fn changed(text: &str, change: impl FnOnce(&mut Text)) -> String {
        let (mut parsed, _) = Text::parse(text.as_bytes()).unwrap();
        change(&mut parsed);
        parsed.finish().unwrap().0
    }

    #[test]
    fn comments_and_order_are_kept() {
        let text = "\
# a guest
name = 'g' # its name
# where Debian has it
kernel = \"/k\"

# cards
[[nets]] # the first
network = 'default' # with DHCP
# the end
";
        let changed = changed(text, |text| {
            text.set_uuid(Uuid::from_u128(1));
            text.set_mac(0, MAC);
            text.set_name("h");
            text.set_autostart(true);
        });
        assert_eq!(
            changed,
            "\
# a guest
name = \"h\" # its name
uuid = \"00000000-0000-0000-0000-000000000001\"
# where Debian has it
kernel = \"/k\"
autostart = true

# cards
[[nets]] # the first
network = 'default' # with DHCP
mac = \"52:54:00:00:00:09\"
# the end
"
        );
    }

    #[test]
    fn cards_in_one_line_get_addresses() {
        let text = "name='g'\nkernel='/k'\nnets = [{ network = 'a' }, { network = 'b' }] # two\n";
        let changed = changed(text, |text| text.set_mac(1, MAC));
        let (mut text, _) = Text::parse(changed.as_bytes()).unwrap();
        text.set_mac(0, MAC);
        let cards = text.document["nets"].as_array().unwrap();
        let mac = |index: usize| cards.get(index)?.as_inline_table()?.get("mac")?.as_str();
        assert_eq!(mac(0), Some("52:54:00:00:00:09"));
        assert_eq!(mac(1), mac(0));
        assert!(changed.ends_with("}] # two\n"), "{changed}");
    }

    #[test]
    fn metadata_comes_and_goes() {
        let text = "name='g'\nkernel='/k'\n[[nets]]\nnetwork='a'\n";
        let element = |content: Option<&str>| MetadataChange::Element {
            uri: "http://x/\"y".to_owned(),
            text: content.map(Into::into),
        };
        let with = changed(text, |text| text.set_metadata(&element(Some("<a/>"))));
        let read = text::parse(with.as_bytes()).unwrap();
        assert_eq!(read.metadata["http://x/\"y"], "<a/>", "{with}");
        assert_eq!(read.nets.len(), 1);
        let without = changed(&with, |text| text.set_metadata(&element(None)));
        assert_eq!(without, text);
    }

    #[test]
    fn a_change_that_makes_it_invalid_is_refused() {
        let (mut text, _) = Text::parse(b"name='g'\nkernel='/k'\n").unwrap();
        text.set_metadata(&MetadataChange::Title(Some("two\nlines".into())));
        assert!(text.finish().is_err());
    }
}
