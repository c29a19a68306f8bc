//! `POST /sites`: registers a site. The event `SiteCreated` starts its onboarding.

use contracts::{OnboardingId, SiteId, Timestamp, inbound::SiteRegistration};
use lambda::http::{self, Caller, Problem, Request, Response};
use serde::Serialize;

use crate::{SitesError, Status, registration::Registrar};

/// The channel of sites registered over HTTP. It differs from the channel of every event, because an event's
/// source is never empty.
pub const HTTP: &str = "";
/// The maximum size of the request body, in bytes. A registration with 100 sensors has about 12 KB, and with
/// all metadata 230 KB.
const MAX_BODY_BYTES: usize = 256 * 1024;

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
    /// Returns 400 for an invalid request, 403 if the caller may not register sites, 409 for a reused idempotency key
    /// and 413 for a body that is too large.
    pub async fn handle(
        &self,
        caller: &Caller,
        request: &Request,
        now: Timestamp,
    ) -> Result<Response, Problem> {
        caller.require(caller.scope.may_write())?;
        let key = http::idempotency_key(request, "site")?;
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
            Err(SitesError::KeyReused(site)) => Err(http::idempotency_key_reused("site", site)),
            Err(error) => Err(error.into()),
        }
    }
}
