//! The texts about a guest, which can change while it runs: its title, its description, and those of other programs.

use serde::{Deserialize, Serialize};

use super::Definition;

/// A change of a text. `None` removes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum MetadataChange {
    Title(Option<String>),
    Description(Option<String>),
    /// Of the text under a URI.
    Element {
        uri: String,
        text: Option<String>,
    },
}

impl Definition {
    /// Changes a text.
    pub(crate) fn set_metadata(&mut self, change: MetadataChange) {
        match change {
            MetadataChange::Title(text) => self.title = text,
            MetadataChange::Description(text) => self.description = text,
            MetadataChange::Element { uri, text } => {
                match text {
                    Some(text) => self.metadata.insert(uri, text),
                    None => self.metadata.remove(&uri),
                };
            }
        }
    }
}
