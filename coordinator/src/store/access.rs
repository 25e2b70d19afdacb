//! How a process proves to etcd who it is. It comes from the environment: a configuration is kept in
//! the run directory, and shown.

use std::{env, fmt, fs};

use super::StoreError;

const USER: &str = "BALLAST_ETCD_USER";
const PASSWORD: &str = "BALLAST_ETCD_PASSWORD";
const CA: &str = "BALLAST_ETCD_CA";
const CERTIFICATE: &str = "BALLAST_ETCD_CERTIFICATE";
const KEY: &str = "BALLAST_ETCD_KEY";

/// Credentials and certificates for etcd.
#[derive(Clone, Default)]
pub struct Access {
    /// User and password.
    pub user: Option<(String, String)>,
    /// PEM of the authority that signed the server's certificate.
    pub ca: Option<Vec<u8>>,
    /// PEM of this process' certificate, and of its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_ref().map(|(name, _)| name);
        let (has_ca, has_identity) = (self.ca.is_some(), self.identity.is_some());
        f.debug_struct("Access")
            .field("user", &user)
            .field("has_ca", &has_ca)
            .field("has_identity", &has_identity)
            .finish_non_exhaustive()
    }
}

impl Access {
    /// What `BALLAST_ETCD_USER` and `_PASSWORD` say, and the files that `BALLAST_ETCD_CA`,
    /// `_CERTIFICATE` and `_KEY` name.
    ///
    /// # Errors
    /// [`StoreError::Access`]: one of a pair is missing, or a file cannot be read.
    pub fn from_env() -> Result<Self, StoreError> {
        Self::from(|name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from(value: impl Fn(&'static str) -> Option<String>) -> Result<Self, StoreError> {
        let file = |name: &'static str| {
            let read = |path: String| {
                fs::read(&path).map_err(|error| {
                    StoreError::Access(format!("{name}={path} cannot be read: {error}"))
                })
            };
            value(name).map(read).transpose()
        };
        Ok(Self {
            user: both((USER, value(USER)), (PASSWORD, value(PASSWORD)))?,
            ca: file(CA)?,
            identity: both((CERTIFICATE, file(CERTIFICATE)?), (KEY, file(KEY)?))?,
        })
    }
}

/// Two values that make sense only together.
fn both<T>(
    first: (&str, Option<T>),
    second: (&str, Option<T>),
) -> Result<Option<(T, T)>, StoreError> {
    let missing = |given, missing| {
        Err(StoreError::Access(format!("{given} is set and {missing} is not; set both or none")))
    };
    match (first, second) {
        ((_, Some(a)), (_, Some(b))) => Ok(Some((a, b))),
        ((_, None), (_, None)) => Ok(None),
        ((first, Some(_)), (second, None)) => missing(first, second),
        ((first, None), (second, Some(_))) => missing(second, first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(set: &[(&'static str, &str)]) -> Result<Access, String> {
        let find = |name| set.iter().find(|(key, _)| *key == name);
        let value = |name| find(name).map(|(_, value)| (*value).to_owned());
        Access::from(value).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_set_is_no_access_and_no_fault() {
        let access = access(&[]).expect("nothing to object to");
        assert!(access.user.is_none() && access.ca.is_none() && access.identity.is_none());
    }

    #[test]
    fn half_a_pair_is_named() {
        let error = access(&[(USER, "run")]).expect_err("half");
        assert!(error.contains("BALLAST_ETCD_PASSWORD is not"), "{error}");
        let error = access(&[(PASSWORD, "secret")]).expect_err("half");
        assert!(error.contains("BALLAST_ETCD_USER is not") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn an_unreadable_file_is_named() {
        let error = access(&[(CA, "/nowhere/ca.pem")]).expect_err("absent");
        assert!(error.contains("BALLAST_ETCD_CA=/nowhere/ca.pem"), "{error}");
    }

    #[test]
    fn secrets_are_not_shown() {
        let access = access(&[(USER, "run"), (PASSWORD, "secret")]).expect("a pair");
        let shown = format!("{access:?}");
        assert!(shown.contains("run") && !shown.contains("secret"), "{shown}");
    }
}
