//! The caller of the API, as the function `authorise-caller` identified it.

use contracts::{OperatorId, Plan, Scope};
use limits::Sender;
use serde_json::Value;

use crate::http::{Problem, Request};

/// The caller of a request. API Gateway passes it from the authorizer to each function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The operator that the caller belongs to. The caller sees and changes only what belongs to it. Only an
    /// administrator may also manage other operators and their keys, and read their audit trail.
    pub operator: OperatorId,
    /// What the caller may do.
    pub scope: Scope,
    /// Who the caller is: `key:<prefix of the key>`, `jwt:<subject>` or `bootstrap`.
    pub actor: String,
    /// The plan of the operator, which decides how many requests its callers may send.
    pub plan: Plan,
}

/// The error for a request whose authorizer context is missing or not valid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the authorizer's context has no valid {0}")]
pub struct InvalidContext(&'static str);

impl Caller {
    /// Names of the fields in the authorizer's context. The values are texts.
    pub const OPERATOR_ID: &'static str = "operatorId";
    /// See [`Caller::OPERATOR_ID`].
    pub const SCOPE: &'static str = "scope";
    /// See [`Caller::OPERATOR_ID`].
    pub const ACTOR: &'static str = "actor";
    /// See [`Caller::OPERATOR_ID`].
    pub const PLAN: &'static str = "plan";

    /// Reads the caller from the request's authorizer context.
    ///
    /// # Errors
    /// Fails if a field is missing or not valid. Such a request did not pass the authorizer and must be refused.
    pub fn from_request(request: &Request) -> Result<Self, InvalidContext> {
        let fields = &request.request_context.authorizer.fields;
        let text = |name| fields.get(name).and_then(Value::as_str).ok_or(InvalidContext(name));
        Ok(Self {
            operator: text(Self::OPERATOR_ID)?
                .parse()
                .map_err(|_| InvalidContext(Self::OPERATOR_ID))?,
            scope: text(Self::SCOPE)?.parse().map_err(|_| InvalidContext(Self::SCOPE))?,
            actor: text(Self::ACTOR)?.to_owned(),
            plan: plan(text(Self::PLAN)?).ok_or(InvalidContext(Self::PLAN))?,
        })
    }

    /// Returns the caller for the rate limits. Each logger key has a limit of its own.
    pub(crate) fn sender(&self) -> Sender<'_> {
        let logger_key = matches!(self.scope, Scope::Logger(_)).then_some(self.actor.as_str());
        Sender {
            operator: self.operator,
            plan: self.plan,
            logger_key,
            may_start_sagas: self.scope.may_write(),
        }
    }

    /// Refuses the request with 403 if it names another operator and the caller is not an administrator.
    pub fn require_operator(&self, named: OperatorId) -> Result<(), Problem> {
        self.require(named == self.operator || self.scope == Scope::Admin)
    }

    /// Refuses the request with 403 unless it is allowed.
    ///
    /// Decide `allowed` by the caller's scope only, never by what exists: a 403 must not show that a resource of
    /// another operator exists.
    pub fn require(&self, allowed: bool) -> Result<(), Problem> {
        if allowed {
            return Ok(());
        }
        Err(Problem::new(
            403,
            "forbidden",
            "Forbidden",
            format!(
                "The scope of your credential is {}. It does not allow this request; use a credential with \
                 another scope.",
                self.scope
            ),
        ))
    }
}

/// Returns the plan with this name.
fn plan(name: &str) -> Option<Plan> {
    Plan::ALL.iter().copied().find(|plan| plan.name() == name)
}

#[cfg(test)]
mod tests {
    use contracts::SiteId;
    use serde_json::json;

    use super::*;

    fn request(context: &Value) -> Request {
        serde_json::from_value(json!({
            "httpMethod": "GET",
            "headers": {},
            "multiValueHeaders": {},
            "requestContext": { "httpMethod": "GET", "authorizer": context },
        }))
        .expect("a request")
    }

    fn context() -> Value {
        json!({
            "principalId": "x",
            "operatorId": OperatorId::DEFAULT.to_string(),
            "scope": "read",
            "actor": "key:fsr_12345678",
            "plan": "standard",
            "integrationLatency": 12,
        })
    }

    #[test]
    fn the_caller_is_read_from_the_authorizers_context() {
        assert_eq!(
            Caller::from_request(&request(&context())),
            Ok(Caller {
                operator: OperatorId::DEFAULT,
                scope: Scope::Read,
                actor: "key:fsr_12345678".to_owned(),
                plan: Plan::Standard,
            })
        );
    }

    #[test]
    fn a_missing_or_wrong_field_is_an_error() {
        assert_eq!(
            Caller::from_request(&Request::default()),
            Err(InvalidContext(Caller::OPERATOR_ID))
        );
        for name in [Caller::OPERATOR_ID, Caller::SCOPE, Caller::ACTOR, Caller::PLAN] {
            let mut missing = context();
            missing.as_object_mut().expect("an object").remove(name);
            assert_eq!(Caller::from_request(&request(&missing)), Err(InvalidContext(name)));
        }
        for (name, wrong) in [
            (Caller::OPERATOR_ID, json!("default")),
            (Caller::SCOPE, json!("Admin")),
            (Caller::SCOPE, json!(1)),
            (Caller::PLAN, json!("gold")),
        ] {
            let mut context = context();
            context[name] = wrong;
            assert_eq!(Caller::from_request(&request(&context)), Err(InvalidContext(name)));
        }
    }

    #[test]
    fn a_scope_that_does_not_allow_the_request_is_forbidden() {
        let caller = Caller::from_request(&request(&context())).expect("a caller");
        assert_eq!(caller.require(caller.scope.may_read()), Ok(()));
        let problem = caller.require(caller.scope.may_write()).expect_err("read only");
        assert_eq!((problem.status, problem.reason().as_str()), (403, "Forbidden"));
    }

    #[test]
    fn only_a_logger_key_has_its_own_limit_and_only_writers_take_tokens_of_sagas() {
        let site = SiteId::registered(OperatorId::DEFAULT, "http", "a");
        for (scope, logger_key, may_start_sagas) in [
            (Scope::Admin, None, true),
            (Scope::Operator, None, true),
            (Scope::Read, None, false),
            (Scope::Bootstrap, None, false),
            (Scope::Logger(site), Some("key:fsr_12345678"), false),
        ] {
            let mut caller = Caller::from_request(&request(&context())).expect("a caller");
            caller.scope = scope;
            let sender = caller.sender();
            assert_eq!(sender.logger_key, logger_key, "{scope}");
            assert_eq!(sender.may_start_sagas, may_start_sagas, "{scope}");
        }
    }
}
