//! Where things are in the store. Pure.

use super::StoreError;

/// Longest name that becomes part of a key, in bytes.
const NAME_BYTES_MAX: usize = 100;

/// The keys of one run: `<prefix>/<run>/...`, so that runs can share an etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    root: String,
}

impl Keys {
    pub(super) fn new(prefix: &str, run: &str) -> Result<Self, StoreError> {
        Ok(Self { root: format!("{}/{}", prefix.trim_end_matches('/'), name(run)?) })
    }

    /// Created by the one who leads.
    pub(super) fn leader(&self) -> String {
        format!("{}/leader", self.root)
    }

    /// Begins the key of every member.
    pub(super) fn members(&self) -> String {
        format!("{}/members/", self.root)
    }

    pub(super) fn member(&self, role: &str, id: &str) -> Result<String, StoreError> {
        Ok(format!("{}{}/{}", self.members(), name(role)?, name(id)?))
    }

    /// Role and id of the member with this key.
    pub(super) fn split_member<'a>(&self, key: &'a str) -> Option<(&'a str, &'a str)> {
        key.strip_prefix(&self.members())?.split_once('/')
    }

    pub(super) fn document(&self, document: &str) -> Result<String, StoreError> {
        Ok(format!("{}/documents/{}", self.root, name(document)?))
    }
}

/// A name must not reach into another part of the tree.
fn name(name: &str) -> Result<&str, StoreError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let sound = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(plain);
    if sound { Ok(name) } else { Err(StoreError::Name(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_kinds_are_apart() {
        let keys = Keys::new("/ballast/", "first").expect("sound");
        assert_eq!(keys.leader(), "/ballast/first/leader");
        assert_eq!(keys.member("actor", "a-1").expect("sound"), "/ballast/first/members/actor/a-1");
        assert_eq!(keys.document("live").expect("sound"), "/ballast/first/documents/live");
        let other = Keys::new("/ballast", "first2").expect("sound");
        assert!(!other.members().starts_with(&keys.members()));
    }

    #[test]
    fn a_member_is_found_again_in_its_key() {
        let keys = Keys::new("/ballast", "run").expect("sound");
        let key = keys.member("learner", "gpu.0").expect("sound");
        assert_eq!(keys.split_member(&key), Some(("learner", "gpu.0")));
        assert_eq!(keys.split_member("/ballast/run/leader"), None);
    }

    #[test]
    fn a_name_cannot_leave_its_place() {
        let keys = Keys::new("/ballast", "run").expect("sound");
        for name in ["", "a/b", "..//", "a b", "\u{e4}", &"x".repeat(NAME_BYTES_MAX + 1)] {
            assert_eq!(keys.member("actor", name), Err(StoreError::Name(name.to_owned())));
            assert_eq!(Keys::new("/ballast", name), Err(StoreError::Name(name.to_owned())));
        }
    }
}
