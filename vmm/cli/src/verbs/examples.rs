//! Examples of the verbs, for their help and for the manual's pages. They are one story: a test runs all of them, in
//! this order.

/// A verb, what the example does, and its command.
type Example = (&'static str, &'static str, &'static str);

const ALL: &[Example] = &[
    (
        "doctor",
        "See what this host lacks for guests",
        "bulkhead doctor",
    ),
    (
        "doctor",
        "The same for a program",
        "bulkhead doctor -o json",
    ),
    (
        "nodeinfo",
        "Print the host's processors and memory",
        "bulkhead nodeinfo",
    ),
    ("hostname", "Print the host's name", "bulkhead hostname"),
    ("version", "Print the versions", "bulkhead version"),
    (
        "help",
        "List the commands about the host",
        "bulkhead help host",
    ),
    (
        "completion",
        "Complete commands and names in this bash",
        "source <(bulkhead completion bash)",
    ),
    (
        "schema",
        "Write the schema of definitions for an editor",
        "bulkhead schema >bulkhead-guest.schema.json",
    ),
    (
        "run",
        "Print the commands that a guest consists of",
        "bulkhead run --name demo --kernel vmlinuz --dry-run",
    ),
    (
        "define",
        "Define the guest that a file describes",
        "bulkhead define web.toml",
    ),
    (
        "list",
        "List all guests, also those that do not run",
        "bulkhead list --all",
    ),
    (
        "list",
        "Print the names alone",
        "bulkhead list --all --name",
    ),
    (
        "dumptoml",
        "Print a guest's definition",
        "bulkhead dumptoml web",
    ),
    (
        "desc",
        "Set a description",
        "bulkhead desc web 'The shop, behind the proxy'",
    ),
    ("title", "Set a title", "bulkhead title web Shop"),
    (
        "autostart",
        "Have a guest started with the host",
        "bulkhead autostart web",
    ),
    (
        "autostart",
        "No longer do so",
        "bulkhead autostart web --disable",
    ),
    ("domuuid", "Print a guest's UUID", "bulkhead domuuid web"),
    ("start", "Start a guest", "bulkhead start web"),
    ("domid", "Print a running guest's id", "bulkhead domid web"),
    (
        "domname",
        "Print the name of the guest with this id",
        "bulkhead domname 1",
    ),
    (
        "domstate",
        "Print a guest's state and why it is in it",
        "bulkhead domstate web --reason",
    ),
    (
        "dominfo",
        "Print the main facts about a guest",
        "bulkhead dominfo web",
    ),
    ("suspend", "Stop a guest's CPUs", "bulkhead suspend web"),
    ("resume", "Let them run on", "bulkhead resume web"),
    (
        "logs",
        "Print a guest's output and its processes' messages",
        "bulkhead logs web",
    ),
    ("destroy", "End a guest at once", "bulkhead destroy web"),
    (
        "domrename",
        "Give a guest another name",
        "bulkhead domrename web shop",
    ),
    (
        "undefine",
        "Remove a guest's definition",
        "bulkhead undefine shop",
    ),
    (
        "pwd",
        "Print the folder that files are looked for in",
        "bulkhead pwd",
    ),
    (
        "echo",
        "Quote words for a shell",
        "bulkhead echo --shell \"it's\" 'two words'",
    ),
];

/// The examples of a verb: a sentence without its full stop, and a command.
pub(crate) fn of(verb: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let own = ALL.iter().filter(move |(name, _, _)| *name == verb);
    own.map(|(_, sentence, command)| (*sentence, *command))
}
