//! The command `fieldctl keys`.

use std::time::Duration;

use clap::Subcommand;
use contracts::{
    OperatorId, Scope, Timestamp,
    operators::{KeyId, KeyRequest},
};
use keys::ApiKey;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    api::Call,
    commands::confirm,
    error::{CliError, Exit, unreadable},
    output::{self, Screen, Text, Tone},
    render::{Cell, Table, age, ago, parse_duration, plain},
    resolve::{self, MIN_PREFIX},
    stack::Stack,
};

const DAY_MILLIS: i64 = 86_400_000;
/// The length of a key's visible prefix.
const PREFIX_LENGTH: usize = 12;

/// Commands for API keys.
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Lists the keys of an operator.
    List {
        /// The operator: its id, the first digits of it, or its name. The default is your operator: that of the key that
        /// fieldctl uses.
        #[arg(long)]
        operator: Option<String>,
    },
    /// Creates a key and prints it. It can't be shown again.
    Create {
        /// The name of the key, such as its holder or its place.
        name: String,
        /// What the key may do: admin, operator, read, or logger:SITE with the site's id, the first digits of it, or its
        /// name.
        #[arg(long)]
        scope: String,
        /// The operator: its id, the first digits of it, or its name. The default is your operator.
        #[arg(long)]
        operator: Option<String>,
        /// The days until the key expires. Without it, the key does not expire.
        #[arg(long, value_name = "DAYS")]
        expires_in_days: Option<u32>,
    },
    /// Replaces a key by a new one with the same name, scope and lifetime, and prints the new key.
    ///
    /// The old key stays valid for the overlap, so that its holder has time to change to the new one.
    Rotate {
        /// The key: its prefix, its id or the first digits of it, or its name. Never the whole key.
        key: String,
        /// The operator of the key: its id, the first digits of it, or its name. The default is your operator.
        #[arg(long)]
        operator: Option<String>,
        /// How long the old key stays valid: up to 30d.
        #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "24h")]
        overlap: Duration,
        /// The days until the new key expires. The default is the lifetime of the old key.
        #[arg(long, value_name = "DAYS")]
        expires_in_days: Option<u32>,
    },
    /// Revokes a key permanently.
    Revoke {
        /// The key: its prefix, its id or the first digits of it, or its name. Never the whole key.
        key: String,
        /// The operator of the key: its id, the first digits of it, or its name. The default is your operator.
        #[arg(long)]
        operator: Option<String>,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
}

/// A key, as the API lists it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    key_id: KeyId,
    prefix: String,
    name: String,
    scope: Scope,
    created_at: Timestamp,
    expires_at: Option<Timestamp>,
    revoked_at: Option<Timestamp>,
    /// The last day on which it was used, in UTC.
    last_used_on: Option<String>,
}

impl Keys {
    /// Runs the command.
    pub async fn run(self, stack: &Stack, screen: &mut Screen) -> Result<Exit, CliError> {
        match self {
            Self::List { operator } => {
                let operator = find_operator(stack, operator).await?;
                list(stack, screen, operator).await
            }
            Self::Create { name, scope, operator, expires_in_days } => {
                let operator_id = find_operator(stack, operator).await?;
                let scope = find_scope(stack, &scope).await?;
                let request = KeyRequest {
                    name,
                    scope,
                    expires_in_days,
                    replaces: None,
                    overlap_seconds: None,
                    operator_id,
                };
                create(stack, screen, &request).await
            }
            Self::Rotate { key, operator, overlap, expires_in_days } => {
                let operator_id = find_operator(stack, operator).await?;
                let old = find_key(stack, &key, operator_id).await?;
                let request = KeyRequest {
                    expires_in_days: expires_in_days.or(old.lifetime_days()),
                    name: old.name,
                    scope: old.scope,
                    replaces: Some(old.key_id),
                    // The API refuses a number that is too large.
                    overlap_seconds: Some(u32::try_from(overlap.as_secs()).unwrap_or(u32::MAX)),
                    operator_id,
                };
                create(stack, screen, &request).await
            }
            Self::Revoke { key, operator, yes } => {
                let operator = find_operator(stack, operator).await?;
                let key = find_key(stack, &key, operator).await?;
                revoke(stack, screen, &key, operator, yes).await
            }
        }
    }
}

impl Listed {
    fn from_api(key: &Value) -> Result<Self, CliError> {
        Self::deserialize(key).map_err(|error| unreadable("the API's list of keys", &error))
    }

    /// Returns the days from its creation to its expiry, rounded up.
    fn lifetime_days(&self) -> Option<u32> {
        let millis = self.expires_at?.millis() - self.created_at.millis();
        u32::try_from((millis + DAY_MILLIS - 1) / DAY_MILLIS).ok().map(|days| days.max(1))
    }

    fn row(&self, screen: &Screen) -> Vec<Cell> {
        let now = screen.now;
        let scope = match self.scope {
            Scope::Logger(site) => format!("logger:{}", screen.id(&site)),
            scope => scope.to_string(),
        };
        let expires = match (self.revoked_at, self.expires_at) {
            (Some(at), _) => (format!("revoked {}", ago(now, at)), Tone::Bad),
            (None, None) => plain("never"),
            (None, Some(at)) if at > now => plain(format!("in {}", age(at, now))),
            (None, Some(at)) => (ago(now, at), Tone::Bad),
        };
        vec![
            (self.prefix.clone(), Tone::Strong),
            plain(screen.id(&self.key_id)),
            plain(scope),
            (ago(now, self.created_at), Tone::Faint),
            expires,
            plain(self.last_used_on.clone().unwrap_or_else(|| "never".to_owned())),
            plain(self.name.clone()),
        ]
    }
}

async fn find_scope(stack: &Stack, text: &str) -> Result<Scope, CliError> {
    if let Some(site) = text.strip_prefix("logger:") {
        return resolve::site(stack, site).await.map(Scope::Logger);
    }
    text.parse().map_err(|error| CliError::usage(format!("--scope {text:?} {error}")))
}

async fn find_operator(
    stack: &Stack,
    operator: Option<String>,
) -> Result<Option<OperatorId>, CliError> {
    match operator {
        Some(operator) => resolve::operator(stack, &operator).await.map(Some),
        None => Ok(None),
    }
}

/// Returns the query that names the operator. Without one, the API takes the caller's.
fn of_operator(operator: Option<OperatorId>) -> String {
    operator.map_or(String::new(), |operator| format!("?operatorId={operator}"))
}

async fn all_keys(stack: &Stack, operator: Option<OperatorId>) -> Result<Vec<Value>, CliError> {
    stack.all(&format!("/keys{}", of_operator(operator)), "keys").await
}

/// Finds a key by its visible prefix, its id, the first digits of its id, or its name.
async fn find_key(
    stack: &Stack,
    text: &str,
    operator: Option<OperatorId>,
) -> Result<Listed, CliError> {
    let text = text.trim();
    if ApiKey::is_key_like(text) && text.len() > PREFIX_LENGTH {
        return Err(CliError::usage(
            "the argument is a whole key, which other users of this machine can see",
        )
        .advise("revoke that key; name a key by its prefix, which is its first 12 characters"));
    }
    let keys = all_keys(stack, operator).await?;
    let keys = keys.iter().map(Listed::from_api).collect::<Result<Vec<_>, _>>()?;
    only_match(text, keys)
}

fn only_match(text: &str, keys: Vec<Listed>) -> Result<Listed, CliError> {
    let lower = text.to_lowercase();
    let mut found: Vec<_> = keys
        .into_iter()
        .filter(|key| {
            let has_id = lower.len() >= MIN_PREFIX && key.key_id.to_string().starts_with(&lower);
            let has_name = key.name == text && key.revoked_at.is_none();
            has_id || has_name || key.prefix == text
        })
        .collect();
    match found.len() {
        0 => {
            Err(CliError::not_found(format!("no key has the prefix, the id or the name {text:?}"))
                .advise("`fieldctl keys list` lists the keys of your operator; an administrator names another one with --operator"))
        }
        1 => Ok(found.remove(0)),
        count => {
            let details = found.iter().map(|key| format!("{} {}", key.prefix, key.name));
            let error = CliError::usage(format!("{count} keys match {text:?}"));
            Err(CliError { details: details.collect(), ..error }.advise("use the key's prefix"))
        }
    }
}

async fn list(
    stack: &Stack,
    screen: &mut Screen,
    operator: Option<OperatorId>,
) -> Result<Exit, CliError> {
    let keys = all_keys(stack, operator).await?;
    if screen.json {
        keys.iter().try_for_each(|key| screen.entry(key))?;
    } else if keys.is_empty() {
        screen.line("No keys found.")?;
    } else {
        let keys = keys.iter().map(Listed::from_api).collect::<Result<Vec<_>, _>>()?;
        let rows: Vec<_> = keys.iter().map(|key| key.row(screen)).collect();
        Table::new(["PREFIX", "KEY", "SCOPE", "CREATED", "EXPIRES", "LAST USED", "NAME"])
            .page(screen, &rows)?;
    }
    Ok(Exit::Done)
}

/// Creates a key and prints it.
async fn create(
    stack: &Stack,
    screen: &mut Screen,
    request: &KeyRequest,
) -> Result<Exit, CliError> {
    let call =
        Call::post("/keys", json!(request).to_string()).idempotency_key(Uuid::new_v4().to_string());
    let created = stack.call(call).await.map_err(|error| {
        if error.may_be_done {
            // A repeated request would not show the key.
            error.advise(
            "a key that nobody has may exist: revoke it if `fieldctl keys list` shows it; then run \
             the command again",
        )
        } else {
            error
        }
    })?;
    if screen.json {
        screen.document(&created)?;
    } else {
        let text = |name: &str| created[name].as_str().unwrap_or("?").to_owned();
        // The key is never wrapped, so that it can be copied.
        screen.line(Text::from("key").gap(11).then(screen.paint(Tone::Strong, &text("key"))))?;
        screen.field("keyId", Tone::Plain, &text("keyId"))?;
        screen.field("name", Tone::Plain, &text("name"))?;
        screen.field("scope", Tone::Plain, &text("scope"))?;
        screen.field("operatorId", Tone::Plain, &text("operatorId"))?;
        let expiry = created["expiresAt"].as_str().unwrap_or("never");
        screen.field("expires", Tone::Plain, expiry)?;
    }
    screen.flush()?;
    output::print_notice("store the key now: it can't be shown again");
    Ok(Exit::Done)
}

async fn revoke(
    stack: &Stack,
    screen: &mut Screen,
    key: &Listed,
    operator: Option<OperatorId>,
    yes: bool,
) -> Result<Exit, CliError> {
    let Listed { key_id, prefix, name, scope, last_used_on, .. } = key;
    let used = match last_used_on {
        Some(day) => format!("last used on {day}"),
        None => "never used".to_owned(),
    };
    confirm(&format!("Revoke the key {prefix} ({name}, scope {scope}, {used})?"), yes)?;
    let revoked =
        stack.call(Call::delete(format!("/keys/{key_id}{}", of_operator(operator)))).await?;
    if screen.json {
        screen.document(&revoked)?;
    } else {
        screen.line(&format!(
            "The key {prefix} is revoked. The API may accept it for another 60 s."
        ))?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(id: u128, prefix: &str, name: &str) -> Listed {
        Listed::from_api(&json!({
            "keyId": Uuid::from_u128(id), "prefix": prefix, "name": name, "scope": "read",
            "createdAt": "2026-01-01T00:00:00.000Z",
        }))
        .expect("a key")
    }

    fn keys() -> Vec<Listed> {
        vec![
            listed(0xabcd << 112, "fsr_AAAAAAAA", "roof"),
            listed(0xabce << 112, "fsr_aaaaaaaa", "roof"),
            listed(0xffff << 112, "fsr_BBBBBBBB", "cellar"),
        ]
    }

    #[test]
    fn a_key_is_named_by_prefix_id_or_name() {
        for (text, prefix) in [
            ("fsr_aaaaaaaa", "fsr_aaaaaaaa"),
            ("ABCD", "fsr_AAAAAAAA"),
            ("ffff0000-0000-0000-0000-000000000000", "fsr_BBBBBBBB"),
            ("cellar", "fsr_BBBBBBBB"),
        ] {
            assert_eq!(only_match(text, keys()).expect(text).prefix, prefix);
        }
    }

    #[test]
    fn a_revoked_key_is_not_found_by_its_name() {
        let mut keys = keys();
        keys[0].revoked_at = Some(keys[0].created_at);
        assert_eq!(only_match("roof", keys.clone()).expect("a key").prefix, "fsr_aaaaaaaa");
        assert_eq!(only_match("fsr_AAAAAAAA", keys).expect("a key").name, "roof");
    }

    #[test]
    fn an_ambiguous_or_unknown_name_is_refused() {
        for (text, exit, details) in [
            ("roof", Exit::Usage, 2),
            ("abc", Exit::NotFound, 0),
            ("fsr_AAAAAAA", Exit::NotFound, 0),
            ("", Exit::NotFound, 0),
        ] {
            let error = only_match(text, keys()).expect_err(text);
            assert_eq!((error.exit, error.details.len()), (exit, details), "{text:?}");
        }
    }

    #[test]
    fn a_lifetime_is_rounded_up_to_whole_days() {
        let mut key = listed(1, "fsr_AAAAAAAA", "roof");
        assert_eq!(key.lifetime_days(), None);
        for (millis, days) in
            [(1, 1), (DAY_MILLIS, 1), (DAY_MILLIS + 1, 2), (90 * DAY_MILLIS, 90), (-5, 1)]
        {
            key.expires_at = Some(key.created_at.plus_millis(millis));
            assert_eq!(key.lifetime_days(), Some(days), "{millis}");
        }
    }
}
