//! getopt_long for a clap [`Command`]: options and operands in any order, abbreviated long options, values that begin
//! with a dash, repeated options, and getopt's error messages.
//!
//! The definitions are clap's, so that completions, man pages and `--help` are generated from them. clap's own parser
//! refuses much of what scripts pass to qemu-img (`-o=x`, a repeated `-f`, `-b -name`).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::{Arg, ArgAction, Command};

/// A parsed command line: options in their order, and operands.
#[derive(Debug, Default)]
pub(crate) struct Matches {
    options: Vec<(String, OsString)>,
    operands: Vec<OsString>,
}

impl Matches {
    /// Whether a flag was given.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.options.iter().any(|(id, _)| id == name)
    }

    /// The value of an option; the last wins.
    pub(crate) fn value(&self, name: &str) -> Option<&OsStr> {
        self.options
            .iter()
            .rev()
            .find(|(id, _)| id == name)
            .map(|(_, value)| value.as_os_str())
    }

    /// The value of an option as text.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.value(name)
            .map(|value| value.to_string_lossy().into_owned())
    }

    /// Every value of an option, in order.
    pub(crate) fn texts(&self, name: &str) -> Vec<String> {
        self.all()
            .filter(|(id, _)| *id == name)
            .map(|(_, value)| value.to_string_lossy().into_owned())
            .collect()
    }

    /// Every option with its value (empty for a flag), in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &OsStr)> {
        self.options
            .iter()
            .map(|(id, value)| (id.as_str(), value.as_os_str()))
    }

    /// The arguments that are not options.
    pub(crate) fn operands(&self) -> &[OsString] {
        &self.operands
    }
}

/// How operands and options are distinguished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Options may follow operands, unless `POSIXLY_CORRECT` is set.
    Permute,
    /// The first operand ends the options.
    StopAtOperand,
    /// As `Permute`, and a dash with a digit right after the first operand is an operand (`resize image -1G`).
    NegativeNumbers,
}

/// Parses `args` (without the program's name) by the options of `command`. The error is getopt's message, without the
/// program's name in front.
pub(crate) fn parse(command: &Command, args: &[OsString], order: Order) -> Result<Matches, String> {
    let stops = match order {
        Order::StopAtOperand => true,
        Order::Permute => std::env::var_os("POSIXLY_CORRECT").is_some(),
        Order::NegativeNumbers => false,
    };
    let mut matches = Matches::default();
    let mut rest = args.iter();
    // Whether the previous argument was the first operand.
    let mut after_first = false;
    while !matches.flag(HELP) {
        let Some(arg) = rest.next() else { break };
        let is_number = order == Order::NegativeNumbers
            && std::mem::take(&mut after_first)
            && is_negative_number(arg.as_bytes());
        let bytes = arg.as_bytes();
        if bytes == b"--" {
            matches.operands.extend(rest.cloned());
            break;
        }
        if let Some(long) = bytes.strip_prefix(b"--") {
            take_long(command, long, &mut rest, &mut matches)?;
        } else if bytes.len() > 1 && bytes.starts_with(b"-") && !is_number {
            take_short(
                command,
                bytes.get(1..).unwrap_or_default(),
                &mut rest,
                &mut matches,
            )?;
        } else {
            matches.operands.push(arg.clone());
            after_first = matches.operands.len() == 1;
            if stops {
                matches.operands.extend(rest.cloned());
                break;
            }
        }
    }
    // An image records names as text; a name that is converted to text with losses would be another file's.
    let is_text = |(id, value): &&(String, OsString)| id == A_FILE || value.to_str().is_some();
    match matches.options.iter().find(|option| !is_text(option)) {
        Some((id, _)) => Err(format!("the value of option '--{id}' is not valid UTF-8")),
        None => Ok(matches),
    }
}

/// The option whose value is only a file to open, which may have any name.
const A_FILE: &str = "source-file";

fn is_negative_number(arg: &[u8]) -> bool {
    arg.first() == Some(&b'-') && arg.get(1).is_some_and(u8::is_ascii_digit)
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

/// Each long option name of the command, with its option.
fn long_names(command: &Command) -> impl Iterator<Item = (&str, &Arg)> {
    command.get_arguments().flat_map(|arg| {
        let aliases = arg.get_all_aliases().unwrap_or_default();
        arg.get_long()
            .into_iter()
            .chain(aliases)
            .map(move |name| (name, arg))
    })
}

fn find_long<'a>(
    command: &'a Command,
    given: &str,
    written: &str,
) -> Result<(&'a str, &'a Arg), String> {
    if let Some(exact) = long_names(command).find(|(name, _)| *name == given) {
        return Ok(exact);
    }
    let possible: Vec<_> = long_names(command)
        .filter(|(name, _)| name.starts_with(given))
        .collect();
    match possible.as_slice() {
        [] => Err(format!("unrecognized option '--{written}'")),
        [only, others @ ..]
            if others
                .iter()
                .all(|other| other.1.get_id() == only.1.get_id()) =>
        {
            Ok(*only)
        }
        _ => {
            let names: String = possible
                .iter()
                .map(|(name, _)| format!(" '--{name}'"))
                .collect();
            Err(format!(
                "option '--{written}' is ambiguous; possibilities:{names}"
            ))
        }
    }
}

fn take_long<'a>(
    command: &Command,
    long: &[u8],
    rest: &mut impl Iterator<Item = &'a OsString>,
    matches: &mut Matches,
) -> Result<(), String> {
    let (name, value) = match long.iter().position(|&b| b == b'=') {
        Some(at) => (long.get(..at).unwrap_or_default(), long.get(at + 1..)),
        None => (long, None),
    };
    let (name, arg) = find_long(
        command,
        &String::from_utf8_lossy(name),
        &String::from_utf8_lossy(long),
    )?;
    let value = match (takes_value(arg), value) {
        (true, Some(value)) => OsString::from_vec(value.to_vec()),
        (true, None) => rest
            .next()
            .cloned()
            .ok_or_else(|| format!("option '--{name}' requires an argument"))?,
        (false, Some(_)) => return Err(format!("option '--{name}' doesn't allow an argument")),
        (false, None) => OsString::new(),
    };
    matches.options.push((arg.get_id().to_string(), value));
    Ok(())
}

/// The option that ends parsing.
const HELP: &str = "help";

fn take_short<'a>(
    command: &Command,
    mut cluster: &[u8],
    rest: &mut impl Iterator<Item = &'a OsString>,
    matches: &mut Matches,
) -> Result<(), String> {
    while let Some((&letter, tail)) = cluster.split_first() {
        let letter = char::from(letter);
        let arg = command
            .get_arguments()
            .find(|arg| {
                arg.get_short() == Some(letter)
                    || arg
                        .get_all_short_aliases()
                        .is_some_and(|aliases| aliases.contains(&letter))
            })
            .ok_or_else(|| format!("invalid option -- '{letter}'"))?;
        let id = arg.get_id().to_string();
        if !takes_value(arg) {
            let is_help = id == HELP;
            matches.options.push((id, OsString::new()));
            if is_help {
                break;
            }
            cluster = tail;
            continue;
        }
        let value = if tail.is_empty() {
            rest.next()
                .cloned()
                .ok_or_else(|| format!("option requires an argument -- '{letter}'"))?
        } else {
            OsString::from_vec(tail.to_vec())
        };
        matches.options.push((id, value));
        break;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        let flag = |name: &'static str, letter| {
            Arg::new(name)
                .long(name)
                .short(letter)
                .action(ArgAction::SetTrue)
        };
        Command::new("x")
            .disable_help_flag(true)
            .arg(
                Arg::new("format")
                    .long("format")
                    .short('f')
                    .alias("source-format"),
            )
            .arg(
                Arg::new("options")
                    .long("options")
                    .short('o')
                    .action(ArgAction::Append),
            )
            .arg(flag("force-share", 'U'))
            .arg(flag("quiet", 'q'))
    }

    fn parsed(args: &[&str]) -> Result<Matches, String> {
        let args: Vec<_> = args.iter().map(OsString::from).collect();
        parse(&command(), &args, Order::Permute)
    }

    #[test]
    fn options_and_operands_mix() {
        let matches = parsed(&["a", "-qUf", "raw", "b", "--form=qcow2", "--", "-q"]).unwrap();
        assert_eq!(matches.operands(), ["a", "b", "-q"]);
        assert_eq!(matches.text("format").as_deref(), Some("qcow2"));
        assert!(matches.flag("quiet") && matches.flag("force-share"));
    }

    #[test]
    fn values_may_begin_with_a_dash_or_an_equals_sign() {
        let matches = parsed(&["-o", "-x", "-o=y", "--options", "--z", "-"]).unwrap();
        assert_eq!(matches.texts("options"), ["-x", "=y", "--z"]);
        assert_eq!(matches.operands(), ["-"]);
    }

    #[test]
    fn an_alias_of_one_option_is_not_ambiguous_with_itself() {
        assert!(parsed(&["--source", "raw"]).unwrap().flag("format"));
    }

    #[test]
    fn errors_are_getopts() {
        for (args, error) in [
            (&["-z"][..], "invalid option -- 'z'"),
            (&["--zz"], "unrecognized option '--zz'"),
            (&["-f"], "option requires an argument -- 'f'"),
            (&["--form"], "option '--format' requires an argument"),
            (&["--quiet=1"], "option '--quiet' doesn't allow an argument"),
            (
                &["--fo"],
                "option '--fo' is ambiguous; possibilities: '--format' '--force-share'",
            ),
        ] {
            assert_eq!(parsed(args).unwrap_err(), error);
        }
    }

    #[test]
    fn a_negative_number_is_an_operand_of_resize() {
        let args: Vec<_> = ["image", "-1G", "-q"].iter().map(OsString::from).collect();
        let matches = parse(&command(), &args, Order::NegativeNumbers).unwrap();
        assert_eq!(matches.operands(), ["image", "-1G"]);
        assert!(matches.flag("quiet"));
        let args: Vec<_> = ["image", "-q", "-1G"].iter().map(OsString::from).collect();
        assert!(parse(&command(), &args, Order::NegativeNumbers).is_err());
    }
}
