//! The user who runs guests: groups, and the folder for sockets.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid, getgroups};

use super::finding::Finding;
use super::host::{self, Host};
use crate::runtime;
use crate::runtime::SYSTEM_HELPER;
use crate::shell::quote;

/// Who this is.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) id: u32,
    pub(crate) name: String,
    /// The groups of this process, which are those of the login.
    groups: BTreeSet<u32>,
}

impl User {
    pub(crate) fn look() -> Self {
        let id = geteuid().as_raw();
        let more = getgroups().unwrap_or_default();
        let groups = more.into_iter().chain([getegid()]);
        Self {
            id,
            name: name(id),
            groups: groups.map(|group| group.as_raw()).collect(),
        }
    }

    pub(crate) fn is_root(&self) -> bool {
        self.id == 0
    }

    pub(crate) fn is_in(&self, group: u32) -> bool {
        self.groups.contains(&group)
    }
}

/// The user's name; the number where there is none.
fn name(id: u32) -> String {
    let users = host::read("/etc/passwd").unwrap_or_default();
    let mut found = users.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    });
    found.next().unwrap_or_else(|| id.to_string())
}

/// The name of a group, and whether the list of groups has the user in it.
fn group(list: &str, id: u32, user: &str) -> Option<(String, bool)> {
    list.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let number = fields.nth(1)?;
        let members = fields.next()?;
        let is_member = members.split(',').any(|member| member == user);
        (number.parse() == Ok(id)).then(|| (name.to_owned(), is_member))
    })
}

/// What keeps a user from what a group may open.
pub(crate) fn outside(check: &'static str, what: &str, id: u32, user: &User) -> Finding {
    let list = host::read("/etc/group").unwrap_or_default();
    let (name, is_member) = group(&list, id, &user.name).unwrap_or((id.to_string(), false));
    match is_member {
        // A session has the groups of its login.
        true => Finding::fail(
            check,
            format!(
                "{what}: {} is in the group {name}, but not since this login",
                user.name
            ),
        )
        .run(format!("newgrp {name}")),
        false => Finding::fail(
            check,
            format!(
                "{what}: {} is not in the group {name}; log in again after that",
                user.name
            ),
        )
        .run_as_root(format!("usermod -aG {name} {}", user.name)),
    }
}

pub(crate) fn check(host: &Host) -> Vec<Finding> {
    let user = &host.user;
    let mut found = vec![Finding::ok("user", user.name.clone()), folder(user)];
    if !user.is_root() {
        found.push(helper(user));
    }
    found
}

/// The runtime folder, or the one that it is going to be made in, can be written.
fn folder(user: &User) -> Finding {
    const FOLDER: &str = "folder for sockets";
    let base = match runtime::base() {
        Ok(base) => base,
        Err(error) => {
            return Finding::fail(FOLDER, error.to_string())
                .run(format!("export XDG_RUNTIME_DIR=/run/user/{}", user.id));
        }
    };
    if let Err(error) = runtime::check_base(&base) {
        // It ends with what to do.
        let error = format!("{error:#}");
        return match error.rsplit_once(": ") {
            Some((why, command)) if command.starts_with("chmod ") => {
                Finding::fail(FOLDER, why).run(command)
            }
            Some((why, advice)) => Finding::fail(FOLDER, why).advise(advice),
            None => Finding::fail(FOLDER, error),
        };
    }
    let parent = base.parent().unwrap_or(&base);
    let needed = match base.exists() {
        true => &base,
        false => parent,
    };
    let shown = needed.display();
    let quoted = quote(needed.as_os_str());
    let quoted = quoted.display();
    match accessat(
        CWD,
        needed,
        Access::WRITE_OK | Access::EXEC_OK,
        AtFlags::EACCESS,
    ) {
        Ok(()) => Finding::ok(FOLDER, base.display().to_string()),
        Err(Errno::NOENT) => Finding::fail(FOLDER, format!("{shown} is not there"))
            .run_as_root(format!("install -d -m 0700 -o {} {quoted}", user.name)),
        Err(Errno::ROFS) => Finding::fail(FOLDER, format!("{shown} is read-only")).run_as_root(
            format!("mount -t tmpfs -o mode=0755,uid={} tmpfs {quoted}", user.id),
        ),
        Err(error) => Finding::fail(FOLDER, format!("{shown} cannot be written: {error}")).run(
            format!("chown {} {quoted} && chmod u+rwx {quoted}", user.name),
        ),
    }
}

/// The helper that root has started, which an ordinary user shares.
fn helper(user: &User) -> Finding {
    const HELPER: &str = "network helper";
    let start = "bulkhead-net-helper --network default --group bulkhead";
    let socket = Path::new(SYSTEM_HELPER);
    let metadata = match std::fs::metadata(socket) {
        Ok(metadata) => metadata,
        Err(_) => {
            let why = format!("{SYSTEM_HELPER} is not there: guests have no network");
            return Finding::warn(HELPER, why)
                .run_as_root(format!("{start} --socket-path {SYSTEM_HELPER}"));
        }
    };
    match accessat(CWD, socket, Access::WRITE_OK, AtFlags::EACCESS) {
        Ok(()) => Finding::ok(HELPER, SYSTEM_HELPER),
        Err(_) => outside(HELPER, SYSTEM_HELPER, metadata.gid(), user),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_number_and_its_members_by_their_whole_names() {
        let list = "root:x:0:\nkvm:x:104:anna,bert\nkvm2:x:1040:annab\n";
        assert_eq!(group(list, 104, "bert"), Some(("kvm".into(), true)));
        assert_eq!(group(list, 1040, "anna"), Some(("kvm2".into(), false)));
        assert_eq!(group(list, 10, "anna"), None);
    }
}
