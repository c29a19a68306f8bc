//! The authorizer of the API: identifies the caller of each request by its credential.
//!
//! API Gateway calls it with the request, and caches its decision for a minute. A bad credential of any kind is refused
//! in the same way, so that the response says nothing about what exists. An error of a table or of the network is an
//! error of the function, never a refusal.
//!
//! The policy names the whole stage, because the decision is cached for all routes. Each function checks the scope and
//! the ownership of what it is called for.

use std::{collections::HashMap, time::Duration};

use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{OnboardingId, OperatorId, Plan, Scope, Timestamp, operators::OperatorStatus};
use keys::{ApiKey, SharedSecret};
use lambda::{Step, http::Caller};
use secret::{Secret, Source};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use store::{StoreError, Table, Transaction};
use tokio::{sync::Mutex, time::Instant};

use crate::{
    KeyRow, OperatorState, OperatorsError,
    credential::Credential,
    issuer::{Issuer, TokenError},
};

/// The maximum age of the cached secret of the first administrator. A new value counts after this time.
const SECRET_MAX_AGE: Duration = Duration::from_mins(2);
/// The minimum length of the first administrator's secret, in characters.
const MIN_SECRET: usize = 32;
/// How long the state of an operator is cached. With API Gateway's cache of decisions, a change of an operator counts
/// after at most twice this time.
const OPERATOR_MAX_AGE: Duration = Duration::from_mins(1);
/// The maximum number of cached operators, which limits the memory.
const MAX_CACHED_OPERATORS: usize = 1000;
/// The maximum length of a token's subject in the actor's name, in characters.
const MAX_SUBJECT: usize = 100;
/// The time for the write of the last use.
const LAST_USE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a credential was refused. Only logs and the metric `CredentialsRefused` show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no header `Authorization`.
    Missing,
    /// There are several.
    Several,
    /// It is longer than 4096 bytes.
    TooLong,
    /// It is not `Bearer` with an API key or a token.
    Malformed,
    /// The key's checksum does not match.
    WrongChecksum,
    /// There is no such key. It may be a key of another environment.
    UnknownKey,
    /// The key has expired, or was replaced and its overlap has ended.
    ExpiredKey,
    /// The key was revoked.
    RevokedKey,
    /// The operator is suspended.
    SuspendedOperator,
    /// It is not the first administrator's secret.
    WrongSecret,
    /// This environment has no issuer of tokens.
    TokensNotAccepted,
    /// The token is malformed, its signature is wrong, or a claim is missing.
    InvalidToken,
    /// The issuer has no key with the token's key id.
    UnknownTokenKey,
    /// The token has expired.
    ExpiredToken,
    /// The token is not yet valid.
    TokenNotYetValid,
    /// The token is for another audience.
    WrongAudience,
    /// The token is from another issuer.
    WrongIssuer,
    /// The claim `fieldstation_operator` is missing or not an id.
    InvalidOperatorClaim,
    /// The claim `fieldstation_scope` is not a scope that a token can have.
    InvalidScopeClaim,
    /// The operator of the token or the key does not exist.
    UnknownOperator,
}

/// The part of API Gateway's request that is needed. The types accept any headers, because the error for a wrong type
/// would quote the value. There is no `Debug` output, which would contain the credential.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizerRequest {
    method_arn: String,
    #[serde(default)]
    multi_value_headers: Option<Map<String, Value>>,
}

/// The decision, in API Gateway's format.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizerReply {
    principal_id: String,
    policy_document: Policy,
    /// The caller, which the functions read as [`Caller`].
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<HashMap<&'static str, String>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Policy {
    version: &'static str,
    statement: [Statement; 1],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Statement {
    action: &'static str,
    effect: &'static str,
    resource: String,
}

/// The first administrator's secret.
pub type BootstrapSecret = Secret<SharedSecret, &'static str>;

/// Returns the first administrator's secret, read from `source`. A caller sends it as the credential `fsb_<secret>`.
#[must_use]
pub fn bootstrap_secret(source: Source<SharedSecret>) -> BootstrapSecret {
    Secret::new(source, SECRET_MAX_AGE, |text| {
        if text.len() < MIN_SECRET {
            return Err("it is too short");
        }
        Ok(SharedSecret::new(&format!("{}{text}", keys::BOOTSTRAP_PREFIX)))
    })
}

/// The dependencies of the function `authorise-caller`.
#[derive(Debug)]
pub struct AuthoriseCaller {
    /// The keys table.
    pub keys: Table,
    /// The operators table.
    pub operators: Table,
    /// The first administrator's secret.
    pub bootstrap: BootstrapSecret,
    /// The issuer of tokens. Without one, tokens are refused.
    pub issuer: Option<Issuer>,
    /// The states of operators.
    pub cached_operators: CachedOperators,
}

/// The states of operators, each with the time of its read.
#[derive(Debug, Default)]
pub struct CachedOperators(Mutex<HashMap<OperatorId, (Instant, Option<OperatorState>)>>);

/// The result of a check.
enum Check {
    Accepted(Caller),
    /// The credential is refused. The prefix is that of a key whose checksum matches.
    Refused(Refusal, Option<String>),
}

impl Step for AuthoriseCaller {
    type Command = AuthorizerRequest;
    type Reply = AuthorizerReply;
    type Error = OperatorsError;

    fn correlation(_: &AuthorizerRequest) -> Option<OnboardingId> {
        None
    }

    async fn run(
        &self,
        request: AuthorizerRequest,
        now: Timestamp,
    ) -> Result<AuthorizerReply, OperatorsError> {
        let stage = stage(&request.method_arn).ok_or(OperatorsError::NoMethod)?;
        let headers = request.multi_value_headers.unwrap_or_default();
        let check = match Credential::from_headers(&headers) {
            Ok(Credential::Key(key)) => self.check_key(&key, now).await?,
            Ok(Credential::Bootstrap(text)) => self.check_bootstrap(&text).await?,
            Ok(Credential::Token(token)) => self.check_token(&token).await?,
            Err(refusal) => Check::Refused(refusal, None),
        };
        match check {
            Check::Accepted(caller) => Ok(AuthorizerReply {
                principal_id: caller.actor.clone(),
                policy_document: policy("Allow", stage),
                context: Some(HashMap::from([
                    (Caller::OPERATOR_ID, caller.operator.to_string()),
                    (Caller::SCOPE, caller.scope.to_string()),
                    (Caller::ACTOR, caller.actor),
                    (Caller::PLAN, caller.plan.name().to_owned()),
                ])),
            }),
            Check::Refused(refusal, key) => {
                let reason = format!("{refusal:?}");
                tracing::warn!(reason, key, "credential refused");
                metrics::counter!("CredentialsRefused", "reason" => reason).increment(1);
                Ok(AuthorizerReply {
                    principal_id: "refused".to_owned(),
                    policy_document: policy("Deny", stage),
                    context: None,
                })
            }
        }
    }
}

impl AuthoriseCaller {
    async fn check_key(&self, key: &ApiKey, now: Timestamp) -> Result<Check, OperatorsError> {
        let prefix = key.visible_prefix();
        let refused = |refusal| Ok(Check::Refused(refusal, Some(prefix.to_owned())));
        let hash = key.hash();
        let row: Option<KeyRow> = self.keys.get(&KeyRow::key(&hash)).await?;
        let Some(row) = row else { return refused(Refusal::UnknownKey) };
        if row.revoked_at.is_some() {
            return refused(Refusal::RevokedKey);
        }
        if row.expires_at.is_some_and(|end| end <= now) {
            return refused(Refusal::ExpiredKey);
        }
        let plan = match self.plan(row.operator_id).await? {
            Ok(plan) => plan,
            Err(refusal) => return refused(refusal),
        };
        self.record_use(&hash, &row, now).await;
        Ok(Check::Accepted(Caller {
            operator: row.operator_id,
            scope: row.scope,
            actor: row.actor(),
            plan,
        }))
    }

    /// Records the day of the use, at most once a day. A failure is only logged: the caller is known.
    async fn record_use(&self, hash: &str, row: &KeyRow, now: Timestamp) {
        let today = now.to_string().chars().take("2026-01-31".len()).collect::<String>();
        if row.last_used_on.as_ref().is_some_and(|day| *day >= today) {
            return;
        }
        let update = Transaction::on(&self.keys)
            .update(
                &self.keys,
                &KeyRow::key(hash),
                "SET #lastUsedOn = :lastUsedOn",
                Some(
                    "attribute_exists(id) \
                     AND (attribute_not_exists(#lastUsedOn) OR #lastUsedOn < :lastUsedOn)",
                ),
                [("lastUsedOn", AttributeValue::S(today))],
            )
            .commit();
        let prefix = &row.prefix;
        match tokio::time::timeout(LAST_USE_TIMEOUT, update).await {
            // If it is refused, a concurrent call has recorded the day.
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(key = prefix, %error, "the last use was not recorded");
            }
            Err(_) => tracing::warn!(key = prefix, "the last use was not recorded in time"),
        }
    }

    async fn check_bootstrap(&self, credential: &str) -> Result<Check, OperatorsError> {
        let secret = self.bootstrap.get().await;
        let secret = secret.map_err(|error| OperatorsError::Secret(error.to_string()))?.secret;
        if !secret.matches(credential) {
            return Ok(Check::Refused(Refusal::WrongSecret, None));
        }
        Ok(Check::Accepted(Caller {
            operator: OperatorId::DEFAULT,
            scope: Scope::Bootstrap,
            actor: "bootstrap".to_owned(),
            plan: OperatorState::DEFAULT.plan,
        }))
    }

    async fn check_token(&self, token: &str) -> Result<Check, OperatorsError> {
        let refused = |refusal| Ok(Check::Refused(refusal, None));
        let Some(issuer) = &self.issuer else { return refused(Refusal::TokensNotAccepted) };
        let subject = match issuer.verify(token).await {
            Ok(subject) => subject,
            Err(TokenError::Refused(refusal)) => return refused(refusal),
            Err(TokenError::KeySet(error)) => return Err(error.into()),
        };
        let plan = match self.plan(subject.operator).await? {
            Ok(plan) => plan,
            Err(refusal) => return refused(refusal),
        };
        Ok(Check::Accepted(Caller {
            operator: subject.operator,
            scope: subject.scope,
            actor: format!("jwt:{}", printable(&subject.subject)),
            plan,
        }))
    }

    /// Returns the operator's plan, or why its callers are refused.
    async fn plan(&self, operator: OperatorId) -> Result<Result<Plan, Refusal>, StoreError> {
        Ok(match self.operator(operator).await? {
            None => Err(Refusal::UnknownOperator),
            Some(OperatorState { status: OperatorStatus::Suspended, .. }) => {
                Err(Refusal::SuspendedOperator)
            }
            Some(OperatorState { status: OperatorStatus::Active, plan }) => Ok(plan),
        })
    }

    /// Returns the operator's state, which may be as old as [`OPERATOR_MAX_AGE`]. An operator with many keys is read once
    /// in that time.
    async fn operator(&self, operator: OperatorId) -> Result<Option<OperatorState>, StoreError> {
        let mut cached = self.cached_operators.0.lock().await;
        if let Some((read, state)) = cached.get(&operator)
            && read.elapsed() < OPERATOR_MAX_AGE
        {
            return Ok(*state);
        }
        let state = OperatorState::read(&self.operators, operator).await?;
        if cached.len() >= MAX_CACHED_OPERATORS {
            cached.clear();
        }
        cached.insert(operator, (Instant::now(), state));
        Ok(state)
    }
}

/// Returns the ARN that matches all methods of the stage. `method` is `<ARN of the API>/<stage>/<method>/<path>`.
fn stage(method: &str) -> Option<String> {
    let mut parts = method.splitn(3, '/');
    let (api, stage, _) = (parts.next()?, parts.next()?, parts.next()?);
    api.starts_with("arn:").then(|| format!("{api}/{stage}/*"))
}

fn policy(effect: &'static str, stage: String) -> Policy {
    let statement = Statement { action: "execute-api:Invoke", effect, resource: stage };
    Policy { version: "2012-10-17", statement: [statement] }
}

/// Returns the first [`MAX_SUBJECT`] characters of the text, with `?` for each one that is not visible ASCII. A space is
/// not visible.
fn printable(text: &str) -> String {
    let shown = |letter: char| if letter.is_ascii_graphic() { letter } else { '?' };
    text.chars().take(MAX_SUBJECT).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_names_the_whole_stage() {
        let api = "arn:aws:execute-api:eu-central-1:123456789012:abc";
        let expected = Some(format!("{api}/v1/*"));
        assert_eq!(stage(&format!("{api}/v1/GET/sites/36525261")), expected);
        assert_eq!(stage(&format!("{api}/v1/GET/")), expected);
        for wrong in ["", "*", "a/b/c", api, "arn:aws:execute-api:x/v1"] {
            assert_eq!(stage(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_subject_is_printable_and_short() {
        assert_eq!(printable("auth0|a@b.example"), "auth0|a@b.example");
        assert_eq!(printable("a\u{1b}[2J ä\n"), "a?[2J???");
        assert_eq!(printable(&"x".repeat(500)).len(), 100);
    }
}
