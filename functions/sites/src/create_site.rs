//! `POST /sites`: registers a site. The event `SiteCreated` starts its onboarding.

use contracts::{
    OnboardingId, SiteId, Timestamp,
    inbound::{MAX_ID, SiteRegistration},
    input::Reason,
};
use lambda::http::{self, Caller, FieldError, Problem, Request, Response};
use serde::Serialize;

use crate::{SitesError, Status, registration::Registrar};

/// The channel of sites registered over HTTP. It differs from the channel of every event, because an event's
/// source is never empty.
pub const HTTP: &str = "";
/// The maximum size of the request body, in bytes. A registration with 100 sensors has about 12 KB.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// The dependencies of the function `create-site`.
#[derive(Debug)]
pub struct CreateSite(pub Registrar);

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Reply {
    site_id: SiteId,
    onboarding_id: OnboardingId,
    status: Status,
}

impl CreateSite {
    /// Registers the site and returns 202 with its id. A repeated request gets the same response.
    ///
    /// Returns 400 for an invalid request, 403 if the caller may not register sites, 409 for a reused idempotency key and 413 for a body that is too large.
    pub async fn handle(
        &self,
        caller: &Caller,
        request: &Request,
        now: Timestamp,
    ) -> Result<Response, Problem> {
        caller.require(caller.scope.may_write())?;
        let key = idempotency_key(request)?;
        http::reject_query(request)?;
        let registration: SiteRegistration = http::read(request, MAX_BODY_BYTES)?;
        match self.0.register(caller.operator, HTTP, key, registration, None, now).await {
            Ok(registered) => {
                let reply = Reply {
                    site_id: registered.site_id,
                    onboarding_id: registered.onboarding_id,
                    status: Status::Onboarding,
                };
                let site = format!("/sites/{}", reply.site_id);
                Ok(Response::new(202, &reply)?
                    .at(http::relative_location(request, "/sites", &site)))
            }
            Err(SitesError::KeyReused(site)) => Err(key_reused(site)),
            Err(error) => Err(Problem::from_fault(&error)),
        }
    }
}

fn key_reused(site: SiteId) -> Problem {
    let detail = "Send a new Idempotency-Key for a new site. To repeat the earlier request, send its \
                  registration unchanged.";
    Problem {
        errors: vec![FieldError::new(
            "header Idempotency-Key",
            format!("was used before, for site {site} with a different registration"),
        )],
        ..Problem::conflict("idempotency-key-reused", detail)
    }
}

fn idempotency_key(request: &Request) -> Result<&str, Problem> {
    let invalid = |problem: String| {
        let message = format!(
            "{problem}; send 1 to {MAX_ID} ASCII characters of your choice, a new UUID for each \
             new site, and the same one when you repeat the request"
        );
        FieldError::new("header Idempotency-Key", message)
    };
    let Some(value) = request.headers.get("Idempotency-Key") else {
        let missing = invalid("is missing".to_owned()).with_reason(Reason::MissingField);
        return Err(Problem::invalid(vec![missing]));
    };
    let invalid = |problem: String| Problem::invalid(vec![invalid(problem)]);
    let is_printable = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
    match value.to_str() {
        Ok(key) if !key.as_bytes().iter().all(is_printable) => {
            Err(invalid("holds a control character".to_owned()))
        }
        Ok(key) if key.trim().is_empty() || key.len() > MAX_ID => {
            Err(invalid(format!("has {} characters", key.trim().len())))
        }
        Ok(key) => Ok(key),
        Err(_) => Err(invalid("holds characters outside ASCII".to_owned())),
    }
}
