//! A command line that has to be refused, and how.

/// What is wrong with where a program runs, rather than with what it is given.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setting {
    /// Nothing.
    Sound,
    /// There is no /dev/kvm.
    NoKvm,
    /// The user is not root, and /dev/kvm is root's.
    OtherUser,
    /// dnsmasq is not installed.
    NoDnsmasq,
    /// A bridge of the host's has the default network's subnet.
    SubnetInUse,
}

/// A command line that is refused. `LONG` in it is a name longer than a socket's path can be.
pub(crate) struct Case {
    pub(crate) line: &'static str,
    pub(crate) status: i32,
    pub(crate) says: &'static [&'static str],
    pub(crate) setting: Setting,
    /// It is only noticed once the program has a KVM.
    pub(crate) needs_kvm: bool,
}

pub(crate) const fn refused(
    line: &'static str,
    status: i32,
    says: &'static [&'static str],
) -> Case {
    Case {
        line,
        status,
        says,
        setting: Setting::Sound,
        needs_kvm: false,
    }
}

impl Case {
    pub(crate) const fn with_kvm(mut self) -> Self {
        self.needs_kvm = true;
        self
    }

    pub(crate) const fn when(mut self, setting: Setting) -> Self {
        self.setting = setting;
        self
    }
}
