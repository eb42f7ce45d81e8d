//! Option lists: `name=value,flag,name=with,,comma`.

/// One option of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyVal {
    pub(crate) key: String,
    /// Absent for a bare `name`.
    pub(crate) value: Option<String>,
}

/// Splits an option list. A first item without `=` is the value of `implied`.
pub(crate) fn split(list: &str, implied: Option<&str>) -> Vec<KeyVal> {
    items(list)
        .into_iter()
        .enumerate()
        .filter(|(_, item)| !item.is_empty())
        .map(|(index, item)| match (key_end(&item), implied) {
            (Some((key, value)), _) => KeyVal {
                key: key.to_owned(),
                value: Some(value.to_owned()),
            },
            (None, Some(implied)) if index == 0 => KeyVal {
                key: implied.to_owned(),
                value: Some(item),
            },
            (None, _) => KeyVal {
                key: item,
                value: None,
            },
        })
        .collect()
}

fn key_end(item: &str) -> Option<(&str, &str)> {
    item.split_once('=')
}

/// Splits at single commas; two commas are one comma of the item.
fn items(list: &str) -> Vec<String> {
    let mut items = Vec::new();
    let mut item = String::new();
    let mut characters = list.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            ',' if characters.peek() == Some(&',') => {
                characters.next();
                item.push(',');
            }
            ',' => items.push(std::mem::take(&mut item)),
            other => item.push(other),
        }
    }
    items.push(item);
    items
}

/// The name and value of a bare name: `name` is on, `noname` is off.
pub(crate) fn switch(name: &str) -> (&str, &'static str) {
    match name.strip_prefix("no") {
        Some(rest) => (rest, "off"),
        None => (name, "on"),
    }
}

/// Whether the list keeps its meaning when it is joined to others by commas.
pub(crate) fn is_joinable(list: &str) -> bool {
    let trailing = list.bytes().rev().take_while(|&b| b == b',').count();
    !list.is_empty() && !list.starts_with(',') && trailing % 2 == 0
}

/// Whether a list asks for help instead.
pub(crate) fn asks_for_help(list: &str) -> bool {
    split(list, None)
        .iter()
        .any(|item| item.value.is_none() && matches!(item.key.as_str(), "help" | "?"))
}

/// A boolean: `on`, `off`, or another word that QEMU accepts.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &str, implied: Option<&str>) -> Vec<(String, Option<String>)> {
        split(list, implied)
            .into_iter()
            .map(|item| (item.key, item.value))
            .collect()
    }

    #[test]
    fn two_commas_are_one_in_the_value() {
        assert_eq!(
            pairs("size=1M,backing_file=a,,b,nocow", None),
            [
                ("size".into(), Some("1M".into())),
                ("backing_file".into(), Some("a,b".into())),
                ("nocow".into(), None),
            ]
        );
    }

    #[test]
    fn the_first_item_may_be_implied() {
        assert_eq!(
            pairs("image.raw,driver=raw", Some("file")),
            [
                ("file".into(), Some("image.raw".into())),
                ("driver".into(), Some("raw".into()))
            ]
        );
    }

    #[test]
    fn a_bare_name_is_a_switch() {
        assert_eq!(switch("read-only"), ("read-only", "on"));
        assert_eq!(switch("noread-only"), ("read-only", "off"));
        assert_eq!(switch("nocow"), ("cow", "off"));
    }

    #[test]
    fn lists_that_would_change_when_joined_are_found() {
        assert!(is_joinable("a=b") && is_joinable("a=b,,"));
        assert!(!is_joinable("") && !is_joinable(",a") && !is_joinable("a,"));
    }

    #[test]
    fn help_may_stand_anywhere() {
        assert!(asks_for_help("help") && asks_for_help("size=1,?"));
        assert!(!asks_for_help("backing_file=help"));
    }
}
