//! Lists the chains and rules of nftables through netlink: the `nft` program need not be there. Only root may ask.
//!
//! Rules of `iptables-nft` are among them. Of an expression only what a [`Condition`] or a [`Verdict`] says is decoded.

mod message;

use std::io;

use message::{Attributes, Socket, be32};

/// All of nftables that the kernel has in this network namespace.
#[derive(Debug, Default)]
pub(crate) struct Ruleset {
    pub(crate) chains: Vec<Chain>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) family: u8,
    pub(crate) table: String,
    pub(crate) name: String,
    /// Of a base chain: the hook's number, and whether a packet that no rule decides on is dropped.
    pub(crate) base: Option<Base>,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) hook: u32,
    pub(crate) drops: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) conditions: Vec<Condition>,
    pub(crate) verdict: Option<Verdict>,
}

/// What a rule asks of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// The name of the interface it came in by begins with these bytes, of which the last may be the zero at its end.
    Input { begins: Vec<u8>, equal: bool },
    /// The same of the interface it leaves by.
    Output { begins: Vec<u8>, equal: bool },
    /// The state of its connection is in this mask.
    State { mask: u32, within: bool },
    /// Something else.
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

/// Asks the kernel.
///
/// # Errors
/// `PermissionDenied` for a user who may not ask; another kind where the kernel has no nftables.
pub(crate) fn list() -> io::Result<Ruleset> {
    let mut socket = Socket::open()?;
    let mut ruleset = Ruleset::default();
    for (family, bytes) in socket.dump(libc::NFT_MSG_GETCHAIN)? {
        ruleset.chains.extend(chain(family, &bytes));
    }
    for (family, bytes) in socket.dump(libc::NFT_MSG_GETRULE)? {
        let Some((table, name, rule)) = rule(&bytes) else {
            continue;
        };
        let mut chains = ruleset.chains.iter_mut();
        let owner = chains
            .find(|chain| (chain.family, &*chain.table, &*chain.name) == (family, &*table, &*name));
        if let Some(chain) = owner {
            chain.rules.push(rule);
        }
    }
    Ok(ruleset)
}

fn chain(family: u8, bytes: &[u8]) -> Option<Chain> {
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    const HOOK_NUMBER: u16 = 1;
    let attributes = Attributes(bytes);
    let hook = attributes.get(HOOK);
    let hook = hook.and_then(|hook| be32(Attributes(hook).get(HOOK_NUMBER)?));
    let drops = attributes.get(POLICY).and_then(be32) == Some(libc::NF_DROP.cast_unsigned());
    Some(Chain {
        family,
        table: attributes.string(TABLE)?,
        name: attributes.string(NAME)?,
        base: hook.map(|hook| Base { hook, drops }),
        rules: Vec::new(),
    })
}

/// A rule, with its table and its chain.
fn rule(bytes: &[u8]) -> Option<(String, String, Rule)> {
    const TABLE: u16 = 1;
    const CHAIN: u16 = 2;
    const EXPRESSIONS: u16 = 4;
    const ELEMENT: u16 = 1;
    const NAME: u16 = 1;
    const DATA: u16 = 2;
    let attributes = Attributes(bytes);
    let mut decoder = Decoder::default();
    let expressions = Attributes(attributes.get(EXPRESSIONS).unwrap_or_default());
    for (_, expression) in expressions.iter().filter(|(kind, _)| *kind == ELEMENT) {
        let expression = Attributes(expression);
        let data = Attributes(expression.get(DATA).unwrap_or_default());
        decoder.add(&expression.string(NAME)?, data);
    }
    let (table, chain) = (attributes.string(TABLE)?, attributes.string(CHAIN)?);
    Some((table, chain, decoder.rule))
}

/// What a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loaded {
    Input,
    Output,
    /// Of the connection's state, the bits of this mask.
    State(u32),
    Other,
}

/// Decodes the expressions of one rule, in order.
#[derive(Default)]
struct Decoder {
    rule: Rule,
    registers: Vec<(u32, Loaded)>,
}

impl Decoder {
    fn add(&mut self, name: &str, data: Attributes<'_>) {
        match name {
            "meta" => self.load(data, &[(6, Loaded::Input), (7, Loaded::Output)]),
            "ct" => self.load(data, &[(0, Loaded::State(u32::MAX))]),
            "bitwise" => self.mask(data),
            "cmp" => self.compare(data),
            "immediate" => self.decide(data),
            "reject" => self.rule.verdict = Some(Verdict::Drop),
            "match" => {
                let condition = connection_match(data).unwrap_or(Condition::Other);
                self.rule.conditions.push(condition);
            }
            "target" => self.rule.verdict = target(data),
            // They look at no packet, or only load.
            "counter" | "log" | "notrack" | "payload" | "exthdr" | "fib" | "rt" | "socket" => {}
            // A set, a limit, or what is not known here.
            _ => self.rule.conditions.push(Condition::Other),
        }
    }

    /// `meta` and `ct` have a register as the first attribute and a key as the second.
    fn load(&mut self, data: Attributes<'_>, known: &[(u32, Loaded)]) {
        const REGISTER: u16 = 1;
        const KEY: u16 = 2;
        // Without one, the expression sets something.
        let Some(register) = data.get(REGISTER).and_then(be32) else {
            return;
        };
        let key = data.get(KEY).and_then(be32);
        let found = known.iter().find(|(number, _)| Some(*number) == key);
        self.set(register, found.map_or(Loaded::Other, |(_, loaded)| *loaded));
    }

    fn set(&mut self, register: u32, loaded: Loaded) {
        self.registers.retain(|(number, _)| *number != register);
        self.registers.push((register, loaded));
    }

    fn loaded(&self, register: Option<u32>) -> Loaded {
        let found = self
            .registers
            .iter()
            .find(|(number, _)| Some(*number) == register);
        found.map_or(Loaded::Other, |(_, loaded)| *loaded)
    }

    fn mask(&mut self, data: Attributes<'_>) {
        const SOURCE: u16 = 1;
        const TARGET: u16 = 2;
        const MASK: u16 = 4;
        let mask = data.get(MASK).and_then(value).and_then(native32);
        let source = self.loaded(data.get(SOURCE).and_then(be32));
        let masked = match (source, mask) {
            (Loaded::State(bits), Some(mask)) => Loaded::State(bits & mask),
            _ => Loaded::Other,
        };
        if let Some(target) = data.get(TARGET).and_then(be32) {
            self.set(target, masked);
        }
    }

    fn compare(&mut self, data: Attributes<'_>) {
        const SOURCE: u16 = 1;
        const OPERATION: u16 = 2;
        const DATA: u16 = 3;
        const EQUAL: u32 = 0;
        const UNEQUAL: u32 = 1;
        let source = self.loaded(data.get(SOURCE).and_then(be32));
        let begins = data.get(DATA).and_then(value).unwrap_or_default().to_vec();
        let equal = match data.get(OPERATION).and_then(be32) {
            Some(EQUAL) => true,
            Some(UNEQUAL) => false,
            _ => return self.rule.conditions.push(Condition::Other),
        };
        let is_zero = begins.iter().all(|byte| *byte == 0);
        self.rule.conditions.push(match source {
            Loaded::Input => Condition::Input { begins, equal },
            Loaded::Output => Condition::Output { begins, equal },
            // Not equal to nothing: one of the mask's bits is set.
            Loaded::State(mask) if is_zero => Condition::State {
                mask,
                within: !equal,
            },
            Loaded::State(u32::MAX) => match native32(&begins) {
                Some(mask) => Condition::State {
                    mask,
                    within: equal,
                },
                None => Condition::Other,
            },
            Loaded::State(_) | Loaded::Other => Condition::Other,
        });
    }

    fn decide(&mut self, data: Attributes<'_>) {
        const DATA: u16 = 2;
        const VERDICT: u16 = 2;
        const CODE: u16 = 1;
        const CHAIN: u16 = 2;
        let verdict = data
            .get(DATA)
            .and_then(|data| Attributes(data).get(VERDICT));
        let Some(verdict) = verdict.map(Attributes) else {
            return;
        };
        let chain = || verdict.string(CHAIN).unwrap_or_default();
        let code = verdict.get(CODE).and_then(be32).map(u32::cast_signed);
        self.rule.verdict = match code {
            Some(libc::NF_ACCEPT) => Some(Verdict::Accept),
            Some(libc::NF_DROP) => Some(Verdict::Drop),
            Some(libc::NFT_JUMP) => Some(Verdict::Jump(chain())),
            Some(libc::NFT_GOTO) => Some(Verdict::Goto(chain())),
            Some(libc::NFT_RETURN) => Some(Verdict::Return),
            _ => None,
        };
    }
}

/// The bytes of a value's attribute.
fn value(data: &[u8]) -> Option<&[u8]> {
    const VALUE: u16 = 1;
    Attributes(data).get(VALUE)
}

fn native32(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

/// `-m conntrack --ctstate` of iptables: `xt_conntrack_mtinfo2` or 3 with only the state asked for.
fn connection_match(data: Attributes<'_>) -> Option<Condition> {
    const NAME: u16 = 1;
    const REVISION: u16 = 2;
    const INFO: u16 = 3;
    const STATE: u16 = 1;
    if data.string(NAME)? != "conntrack" || data.get(REVISION).and_then(be32)? < 2 {
        return None;
    }
    let info = data.get(INFO)?;
    let field = |at: usize| {
        let bytes = info.get(at..at.checked_add(2)?)?;
        bytes.try_into().ok().map(u16::from_ne_bytes)
    };
    let (asked, inverted, mask) = (field(146)?, field(148)?, field(150)?);
    (asked == STATE).then(|| Condition::State {
        mask: mask.into(),
        within: inverted & STATE == 0,
    })
}

/// A target of iptables that nftables has no expression for.
fn target(data: Attributes<'_>) -> Option<Verdict> {
    const NAME: u16 = 1;
    match &*data.string(NAME)? {
        "REJECT" => Some(Verdict::Drop),
        _ => None,
    }
}
