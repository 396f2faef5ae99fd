//! Users and groups of this machine, read from `/etc/passwd` and `/etc/group`, where packages put
//! the users of services.
//!
//! No directory service (LDAP, NIS) is asked: that needs the C library's resolver, and services
//! rarely run as such users.

use std::io;

use crate::files;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
/// Largest file that is read: about a hundred thousand lines.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// A line of `/etc/passwd`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

/// The name of a user, or the uid as text if it has none here.
pub(crate) fn name_of(uid: u32) -> String {
    let account = Account::find(|account| account.uid == uid).ok().flatten();
    account.map_or_else(|| uid.to_string(), |account| account.name)
}

impl Account {
    /// The first account for which `matches` is true.
    pub(crate) fn find(matches: impl Fn(&Self) -> bool) -> io::Result<Option<Self>> {
        Ok(text(PASSWD)?.lines().filter_map(Self::parse).find(matches))
    }

    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, uid, gid) = (
            fields.next()?.to_owned(),
            fields.nth(1)?.parse().ok()?,
            fields.next()?.parse().ok()?,
        );
        Some(Self { name, uid, gid })
    }

    /// Its primary group, and the groups that list it as a member.
    pub(crate) fn groups(&self) -> io::Result<Vec<u32>> {
        let text = text(GROUP)?;
        Ok([self.gid]
            .into_iter()
            .chain(text.lines().filter_map(|line| self.group(line)))
            .collect())
    }

    /// The gid of a line of `/etc/group`, if that group lists this account as a member.
    fn group(&self, line: &str) -> Option<u32> {
        let mut fields = line.split(':');
        let (gid, members) = (fields.nth(2)?.parse().ok()?, fields.next()?);
        members
            .split(',')
            .any(|member| member == self.name)
            .then_some(gid)
    }
}

fn text(path: &str) -> io::Result<String> {
    let read = files::read(path.as_ref(), FILE_BYTES_MAX);
    // The comment field of a user need not be UTF-8.
    let text = read.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    text.map_err(|error| io::Error::new(error.kind(), format!("cannot read {path}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_the_groups_that_name_it() {
        let account = Account::parse(
            "blobcast:x:990:991:blobcast broker:/var/lib/blobcast:/usr/sbin/nologin",
        )
        .unwrap();
        assert_eq!(
            (account.name.as_str(), account.uid, account.gid),
            ("blobcast", 990, 991)
        );
        for (line, group) in [
            ("ssl-cert:x:104:www,blobcast", Some(104)),
            ("ssl-cert:x:104:blobcast2", None),
            ("ssl-cert:x:104:", None),
            ("nonsense", None),
        ] {
            assert_eq!(account.group(line), group, "{line}");
        }
        assert!(Account::parse("+::::::").is_none());
    }

    #[test]
    fn a_user_without_a_name_is_called_by_its_number() {
        assert_eq!(name_of(0), "root");
        assert_eq!(name_of(4_000_000_000), "4000000000");
    }
}
