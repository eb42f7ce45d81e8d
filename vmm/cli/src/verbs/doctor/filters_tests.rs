use super::super::finding::Status;
use super::super::nft::Base;
use super::*;

const POLICY_DROP: Base = Base {
    hook: libc::NF_INET_FORWARD as u32,
    drops: true,
};

fn chain(name: &str, base: Option<Base>, rules: &[Rule]) -> Chain {
    Chain {
        family: libc::NFPROTO_IPV4 as u8,
        table: "filter".into(),
        name: name.into(),
        base,
        rules: rules.to_vec(),
    }
}

fn rule(conditions: &[Condition], verdict: Verdict) -> Rule {
    Rule {
        conditions: conditions.to_vec(),
        verdict: Some(verdict),
    }
}

fn input(name: &str) -> Condition {
    Condition::Input {
        begins: name.replace('$', "\0").into_bytes(),
        equal: true,
    }
}

fn output(name: &str) -> Condition {
    Condition::Output {
        begins: name.replace('$', "\0").into_bytes(),
        equal: true,
    }
}

fn established() -> Condition {
    Condition::State {
        mask: ESTABLISHED | 4,
        within: true,
    }
}

/// How the rules of a chain with the policy `drop` are judged.
fn status(rules: &[Rule]) -> Status {
    let chains = vec![chain("FORWARD", Some(POLICY_DROP), rules)];
    others(&Ruleset { chains })[0].status()
}

#[test]
fn both_directions_have_to_pass() {
    let out = rule(&[input("bulkhead0$")], Verdict::Accept);
    let back = rule(&[output("bulkhead0$")], Verdict::Accept);
    let answers = rule(&[established()], Verdict::Accept);
    assert_eq!(status(&[]), Status::Fail);
    assert_eq!(status(std::slice::from_ref(&out)), Status::Fail);
    assert_eq!(status(std::slice::from_ref(&answers)), Status::Fail);
    assert_eq!(status(&[out.clone(), back]), Status::Ok);
    assert_eq!(status(&[out, answers]), Status::Ok);
}

#[test]
fn names_with_a_wildcard_count_and_other_interfaces_do_not() {
    let answers = rule(&[established()], Verdict::Accept);
    let accepts = |name| status(&[rule(&[input(name)], Verdict::Accept), answers.clone()]);
    assert_eq!(accepts("bulk"), Status::Ok);
    assert_eq!(accepts("bulkhead$"), Status::Fail);
    assert_eq!(accepts("docker0$"), Status::Fail);
    // All that is not docker's.
    let not_docker = Condition::Input {
        begins: b"docker0\0".to_vec(),
        equal: false,
    };
    let accept = rule(&[not_docker], Verdict::Accept);
    assert_eq!(status(&[accept, answers]), Status::Ok);
}

#[test]
fn what_is_not_known_may_accept_and_is_no_reason_to_fear_a_drop() {
    let may = rule(&[Condition::Other], Verdict::Accept);
    let answers = rule(&[established()], Verdict::Accept);
    assert_eq!(status(&[may, answers]), Status::Warn);
    let some = rule(&[Condition::Other], Verdict::Drop);
    let all = rule(&[], Verdict::Accept);
    assert_eq!(status(&[some, all]), Status::Ok);
}

#[test]
fn chains_are_followed_and_come_back() {
    let jump = rule(&[], Verdict::Jump("DOCKER-USER".into()));
    let accept = rule(&[], Verdict::Accept);
    let judged = |user: &[Rule], after: &[Rule]| {
        let rules: Vec<_> = std::iter::once(&jump).chain(after).cloned().collect();
        let chains = vec![
            chain("FORWARD", Some(POLICY_DROP), &rules),
            chain("DOCKER-USER", None, user),
        ];
        others(&Ruleset { chains }).remove(0)
    };
    let back = rule(&[], Verdict::Return);
    assert_eq!(
        judged(std::slice::from_ref(&back), std::slice::from_ref(&accept)).status(),
        Status::Ok
    );
    assert_eq!(
        judged(std::slice::from_ref(&accept), &[]).status(),
        Status::Ok
    );
    let dropped = judged(&[back], &[]);
    assert_eq!(dropped.status(), Status::Fail);
    let (_, command) = dropped.mend(true).unwrap();
    assert!(command.contains("DOCKER-USER"), "{command}");
}

#[test]
fn chains_that_call_each_other_end() {
    let chains = vec![chain(
        "FORWARD",
        Some(POLICY_DROP),
        &[rule(&[], Verdict::Jump("FORWARD".into()))],
    )];
    assert_eq!(others(&Ruleset { chains })[0].status(), Status::Fail);
}

#[test]
fn only_the_forwarding_of_ipv4_by_others_counts() {
    let mut own = chain("forward", Some(POLICY_DROP), &[]);
    own.table = OWN.into();
    let mut ipv6 = chain("forward", Some(POLICY_DROP), &[]);
    ipv6.family = libc::NFPROTO_IPV6 as u8;
    let chains = vec![own, ipv6, chain("loose", None, &[])];
    let found = others(&Ruleset { chains });
    assert_eq!((found[0].status(), found[0].detail()), (Status::Ok, "none"));
}

#[test]
fn the_older_rules_are_read_as_text() {
    const DROP: &str = "-P FORWARD DROP\n";
    const RULES: &str = "-A FORWARD -i bulkhead0 -j ACCEPT\n-A FORWARD -o bulkhead0 -j ACCEPT\n";
    assert_eq!(judge_legacy("-P FORWARD ACCEPT\n").status(), Status::Ok);
    assert_eq!(judge_legacy(DROP).status(), Status::Fail);
    assert_eq!(judge_legacy(&format!("{DROP}{RULES}")).status(), Status::Ok);
}
