//! What a caller of the API may do.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::SiteId;

/// The scope of an API key or of a token. It is valid for the caller's operator. [`Scope::Admin`] has rights beyond it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Scope {
    /// May do everything that an operator may do, for its own operator. May manage all operators and their keys, and
    /// read their audit trails. The request names the operator. For anything else of another operator, it creates a key
    /// of that operator.
    Admin,
    /// May read and change everything of its operator, and manage its operator's keys.
    Operator,
    /// May send readings of one site, and nothing else.
    Logger(SiteId),
    /// May read everything of its operator.
    Read,
    /// The deployment's secret. May only create personal administrator keys.
    Bootstrap,
}

/// The error for a text that is not a scope.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a scope; give admin, operator, read, or logger:<site id>")]
pub struct InvalidScope;

impl Scope {
    /// Returns whether the caller may read its operator's sites and readings.
    #[must_use]
    pub fn may_read(self) -> bool {
        matches!(self, Self::Admin | Self::Operator | Self::Read)
    }

    /// Returns whether the caller may change what belongs to its operator.
    #[must_use]
    pub fn may_write(self) -> bool {
        matches!(self, Self::Admin | Self::Operator)
    }

    /// Returns whether the caller may send readings of any site.
    #[must_use]
    pub fn may_send_some(self) -> bool {
        matches!(self, Self::Admin | Self::Operator | Self::Logger(_))
    }

    /// Returns whether the caller may send readings of this site of its operator.
    #[must_use]
    pub fn may_send(self, site: SiteId) -> bool {
        match self {
            Self::Admin | Self::Operator => true,
            Self::Logger(own) => own == site,
            Self::Read | Self::Bootstrap => false,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin => f.write_str("admin"),
            Self::Operator => f.write_str("operator"),
            Self::Logger(site) => write!(f, "logger:{site}"),
            Self::Read => f.write_str("read"),
            Self::Bootstrap => f.write_str("bootstrap"),
        }
    }
}

impl FromStr for Scope {
    type Err = InvalidScope;

    fn from_str(text: &str) -> Result<Self, InvalidScope> {
        match text {
            "admin" => Ok(Self::Admin),
            "operator" => Ok(Self::Operator),
            "read" => Ok(Self::Read),
            "bootstrap" => Ok(Self::Bootstrap),
            _ => {
                let site = text.strip_prefix("logger:").ok_or(InvalidScope)?;
                site.parse().map(Self::Logger).map_err(|_| InvalidScope)
            }
        }
    }
}

impl TryFrom<String> for Scope {
    type Error = InvalidScope;

    fn try_from(text: String) -> Result<Self, InvalidScope> {
        text.parse()
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OperatorId;

    fn site(key: &str) -> SiteId {
        SiteId::registered(OperatorId::DEFAULT, "", key)
    }

    #[test]
    fn a_scope_is_read_as_it_is_written() {
        for scope in
            [Scope::Admin, Scope::Operator, Scope::Logger(site("a")), Scope::Read, Scope::Bootstrap]
        {
            assert_eq!(scope.to_string().parse(), Ok(scope));
        }
        for wrong in ["", "Admin", "logger", "logger:", "logger:x", "admin operator", "*"] {
            assert_eq!(wrong.parse::<Scope>(), Err(InvalidScope), "{wrong}");
        }
    }

    #[test]
    fn a_scope_that_may_send_for_a_site_may_send_some_readings() {
        let own = site("a");
        for scope in
            [Scope::Admin, Scope::Operator, Scope::Logger(own), Scope::Read, Scope::Bootstrap]
        {
            assert_eq!(scope.may_send_some(), scope.may_send(own), "{scope}");
        }
    }

    #[test]
    fn each_scope_has_its_rights() {
        let (own, other) = (site("a"), site("b"));
        let rights = |scope: Scope| {
            [scope.may_read(), scope.may_write(), scope.may_send(own), scope.may_send(other)]
        };
        assert_eq!(rights(Scope::Admin), [true; 4]);
        assert_eq!(rights(Scope::Operator), [true; 4]);
        assert_eq!(rights(Scope::Logger(own)), [false, false, true, false]);
        assert_eq!(rights(Scope::Read), [true, false, false, false]);
        assert_eq!(rights(Scope::Bootstrap), [false; 4]);
    }
}
