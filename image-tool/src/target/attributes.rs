//! The attributes that a new file takes over from the one it replaces: owner, mode, access control lists, labels and
//! other extended attributes, and the flags of chattr(1).

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};

use rustix::fs::{
    IFlags, XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr, ioctl_getflags,
    ioctl_setflags,
};

/// The kernel's limit for a list of names and for a value, in bytes.
const XATTR_MAX: usize = 64 << 10;

/// Hashes and signatures of the content, which do not apply to the new file.
const OF_THE_CONTENT: [&[u8]; 2] = [b"security.ima", b"security.evm"];

/// The flags that users set; the file system sets the others.
const FLAGS: [IFlags; 12] = [
    IFlags::NOCOW,
    IFlags::COMPRESSED,
    IFlags::from_bits_retain(FS_NOCOMP_FL),
    IFlags::NOATIME,
    IFlags::NODUMP,
    IFlags::SYNC,
    IFlags::NOTAIL,
    IFlags::SECURE_REMOVAL,
    IFlags::UNRM,
    IFlags::JOURNALING,
    IFlags::PROJECT_INHERIT,
    IFlags::from_bits_retain(FS_DAX_FL),
];

const FS_NOCOMP_FL: u32 = 0x0000_0400;
const FS_DAX_FL: u32 = 0x0200_0000;

/// Copies all attributes of `old` to `new`, which is empty.
///
/// # Errors
/// When an attribute cannot be copied. Then the old file must not be replaced.
pub(super) fn inherit(new: &File, old: &File) -> io::Result<()> {
    let (wanted, present) = (old.metadata()?, new.metadata()?);
    flags(new, old);
    owner(new, &wanted, &present)?;
    extended(new, old)?;
    new.set_permissions(wanted.permissions())?;
    let is_same = |new: &Metadata| {
        (new.uid(), new.gid(), new.permissions().mode())
            == (wanted.uid(), wanted.gid(), wanted.permissions().mode())
    };
    match is_same(&new.metadata()?) {
        true => Ok(()),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

fn owner(new: &File, wanted: &Metadata, present: &Metadata) -> io::Result<()> {
    if (wanted.uid(), wanted.gid()) == (present.uid(), present.gid()) {
        return Ok(());
    }
    let uid = (wanted.uid() != present.uid()).then_some(wanted.uid());
    let gid = (wanted.gid() != present.gid()).then_some(wanted.gid());
    fchown(new, uid, gid)
}

/// Copies flags one by one, since a file system may refuse some of them. A refused flag is ignored.
fn flags(new: &File, old: &File) {
    let (Ok(wanted), Ok(mut present)) = (ioctl_getflags(old), ioctl_getflags(new)) else {
        return;
    };
    for flag in FLAGS {
        let mut with = present;
        with.set(flag, wanted.contains(flag));
        if with != present && ioctl_setflags(new, with).is_ok() {
            present = with;
        }
    }
}

fn extended(new: &File, old: &File) -> io::Result<()> {
    let (wanted, present) = (names(old)?, names(new)?);
    for name in &wanted {
        if OF_THE_CONTENT.contains(&name.as_slice()) {
            continue;
        }
        let value = value(old, name)?;
        if self::value(new, name).is_ok_and(|present| present == value) {
            continue;
        }
        fsetxattr(new, name.as_slice(), &value, XattrFlags::empty())?;
    }
    // Attributes that the new file inherited from its folder.
    for name in present.iter().filter(|name| !wanted.contains(name)) {
        match fremovexattr(new, name.as_slice()) {
            Err(error) if is_access(name) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Whether the attribute grants access (an access control list).
fn is_access(name: &[u8]) -> bool {
    name.starts_with(b"system.")
}

fn names(file: &File) -> io::Result<Vec<Vec<u8>>> {
    let mut list = vec![0u8; XATTR_MAX];
    let len = match flistxattr(file, &mut list[..]) {
        Ok(len) => len,
        Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::NOSYS) => 0,
        Err(error) => return Err(error.into()),
    };
    let list = list.get(..len).unwrap_or_default();
    let names = list
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty());
    Ok(names.map(<[u8]>::to_vec).collect())
}

fn value(file: &File, name: &[u8]) -> io::Result<Vec<u8>> {
    let mut value = vec![0u8; XATTR_MAX];
    let len = fgetxattr(file, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}
