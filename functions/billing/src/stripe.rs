//! A client for the part of Stripe's API that billing needs. Reference: <https://docs.stripe.com/api>.
//!
//! The client does not retry. After [`StripeError::Unavailable`] the caller repeats a write later, with the same
//! idempotency key.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use form_urlencoded::Serializer;
use payments::CallError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use web::http::header::{self, HeaderMap, HeaderValue};
use web::http::{Method, StatusCode};
use web::{Bytes, Limits, Request, Web};

use contracts::Timestamp;
use lambda::Deadline;

use crate::circuit::Health;

/// The API version that the requests and responses here are written for. Without it Stripe uses the account's default
/// version, which can be changed in Stripe's dashboard.
const API_VERSION: &str = "2025-12-15.clover";
const USER_AGENT: &str = concat!("fieldstation/", env!("CARGO_PKG_VERSION"));
/// The timeout of one call, from the name resolution to the last byte of the response.
const CALL_TIMEOUT: Duration = Duration::from_secs(6);
/// The maximum size of a response, which protects the memory. A response with 100 subscriptions is much smaller.
const MAX_RESPONSE_BYTES: usize = 4 << 20;
/// The prefixes of the ids of payment methods: those of today, and those of Stripe's older APIs.
const PAYMENT_METHOD_PREFIXES: [&str; 3] = ["pm_", "card_", "src_"];
/// What a message of Stripe has instead of the id of a payment method.
pub(crate) const HIDDEN_PAYMENT_METHOD: &str = "pm_***";
/// The error name of a call that got no response.
const NO_ANSWER: &str = "NoAnswer";
/// The maximum number of pages of a customer's subscriptions. A customer can have 500, which are 5 pages of 100.
const MAX_PAGES: usize = 10;

/// A secret or restricted API key. It never appears in `Debug` output, errors or logs.
#[derive(Clone)]
pub struct ApiKey(HeaderValue);

impl ApiKey {
    /// Creates a key from the stored text. Surrounding white space is removed.
    pub fn new(key: &str) -> Result<Self, StripeError> {
        let key = key.trim();
        let mut bearer = HeaderValue::try_from(format!("Bearer {key}"))
            .ok()
            .filter(|_| !key.is_empty())
            .ok_or_else(|| {
                StripeError::Config("the API key is empty or not a valid header value".into())
            })?;
        bearer.set_sensitive(true);
        Ok(Self(bearer))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(hidden)")
    }
}

/// Why a call failed. No variant ever holds the API key.
#[derive(Debug, thiserror::Error)]
pub enum StripeError {
    /// The card or its bank declined. This is final for this payment method.
    #[error("{message} ({code})")]
    Declined {
        /// Stripe's error code, such as `card_declined` or `expired_card`.
        code: String,
        /// Stripe's message for the card's owner.
        message: String,
    },
    /// There was no response, or one that asks for a retry. The call may have been executed, so repeat it with the same
    /// idempotency key.
    #[error("Stripe is unavailable: {0}")]
    Unavailable(String),
    /// Stripe stores the first result of an idempotency key, server errors included, and repeats it for a day. The
    /// key can't be used again: check what exists, then continue with another key.
    #[error("Stripe repeats the stored failure of this idempotency key: {0}")]
    IdempotencyKeySpent(String),
    /// Stripe does not know the payment method. This is final, like a declined card.
    #[error("{message}")]
    UnknownPaymentMethod {
        /// Stripe's message and its request id, for the operator.
        message: String,
    },
    /// The API key is wrong, expired, or lacks a permission.
    #[error("Stripe refused the API key with status {0}")]
    Unauthorized(u16),
    /// The request is wrong. A retry would fail too.
    #[error("Stripe rejected the request with status {status}: {message}")]
    Rejected {
        /// The HTTP status.
        status: u16,
        /// Stripe's error code, such as `resource_missing`, if there is one.
        code: Option<String>,
        /// Stripe's message and its request id, for the operator.
        message: String,
    },
    /// The response has a success status but can't be parsed. The request may have been executed.
    #[error("Stripe sent an unexpected response: {0}")]
    Unreadable(String),
    /// The text is not a valid Stripe id.
    #[error("not a Stripe id")]
    InvalidId,
    /// The client can't be created from these settings.
    #[error("the Stripe client can't be created: {0}")]
    Config(String),
}

/// Defines the type of an id. The caller chooses its `Debug`, because some ids must not be logged.
macro_rules! stripe_id {
    ($(#[$attribute:meta])* $name:ident) => {
        $(#[$attribute])*
        #[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Returns the id as Stripe writes it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = StripeError;

            /// Checks the id. Ids become segments of request paths, so characters that could change a path are
            /// refused.
            fn try_from(id: String) -> Result<Self, StripeError> {
                let valid = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || c == b'-';
                let fits = !id.is_empty() && id.len() <= 255 && id.bytes().all(valid);
                if fits { Ok(Self(id)) } else { Err(StripeError::InvalidId) }
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

stripe_id!(
    /// A customer's id: `cus_...`.
    #[derive(Debug)]
    CustomerId
);
stripe_id!(
    /// A payment method's id: `pm_...`. In test mode it can be a name such as `pm_card_visa`, which attaching turns
    /// into an id.
    PaymentMethodId
);
stripe_id!(
    /// A subscription's id: `sub_...`.
    #[derive(Debug)]
    SubscriptionId
);

impl fmt::Debug for PaymentMethodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PaymentMethodId(***)")
    }
}

/// The fields of a subscription that billing reads.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Subscription {
    /// Stripe's id.
    pub id: SubscriptionId,
    /// The status.
    pub status: SubscriptionStatus,
    /// When the subscription was created, in epoch seconds.
    #[serde(default)]
    pub created: i64,
    /// The metadata: `onboardingId` and `siteId`, if billing created the subscription.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

impl Subscription {
    /// Returns whether the subscription has not ended: it is paid, or may still be paid.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !matches!(self.status, SubscriptionStatus::Canceled | SubscriptionStatus::IncompleteExpired)
    }

    /// Returns whether no payment is due now.
    #[must_use]
    pub fn is_paid(&self) -> bool {
        matches!(self.status, SubscriptionStatus::Active | SubscriptionStatus::Trialing)
    }
}

/// `Subscription.status` of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubscriptionStatus {
    /// Paid.
    Active,
    /// In the trial period. No payment is due yet.
    Trialing,
    /// The first payment has not succeeded.
    Incomplete,
    /// The first payment did not succeed in time.
    IncompleteExpired,
    /// A later payment failed.
    PastDue,
    /// Later payments failed and are not tried again.
    Unpaid,
    /// The trial ended without a payment method.
    Paused,
    /// Ended.
    Canceled,
    /// A status newer than this code.
    #[serde(other)]
    Other,
}

/// A client for one Stripe account. Clones share the connections, so a process makes one client for each read of the
/// API key, and each run of a step uses a clone of it.
#[derive(Debug, Clone)]
pub struct Stripe {
    base: String,
    key: ApiKey,
    web: Web,
    call_timeout: Duration,
    deadline: Option<Deadline>,
    key_read_at: Option<Timestamp>,
    health: Option<Health>,
}

impl Stripe {
    /// Creates a client. `base_url` is `https://api.stripe.com` or the URL of a local fake. Plain HTTP is allowed
    /// only to a loopback host.
    pub fn new(base_url: &str, key: ApiKey) -> Result<Self, StripeError> {
        let base = base_url.trim_end_matches('/');
        let config = |error: web::ConfigError| StripeError::Config(format!("base {error}"));
        let uri = web::secure_url(base).map_err(config)?;
        if uri.query().is_some() {
            return Err(StripeError::Config(format!("base URL {base:?} has a query")));
        }
        let web = Web::new().map_err(config)?;
        Ok(Self {
            base: base.to_owned(),
            key,
            web,
            call_timeout: CALL_TIMEOUT,
            deadline: None,
            key_read_at: None,
            health: None,
        })
    }

    /// Sets when the API key was read. Failed calls report this time.
    #[must_use]
    pub fn with_key_read_at(self, key_read_at: Timestamp) -> Self {
        Self { key_read_at: Some(key_read_at), ..self }
    }

    /// Sets the deadline of all calls. With `None`, each call has only its own timeout.
    #[must_use]
    pub fn with_deadline(self, deadline: Option<Deadline>) -> Self {
        Self { deadline, ..self }
    }

    /// Returns the result of this client's last call, or `None` if it has made none. A clone that was made before
    /// the call does not have it.
    #[must_use]
    pub fn into_health(self) -> Option<Health> {
        self.health
    }

    /// Calls "Create a customer". The customer has no payment method yet.
    pub async fn create_customer(
        &mut self,
        name: &str,
        metadata: &[(&str, &str)],
        key: Uuid,
    ) -> Result<CustomerId, StripeError> {
        let mut form = vec![(Cow::from("name"), name)];
        form.extend(metadata.iter().map(in_metadata));
        let created: Created<CustomerId> = self.post("/v1/customers", &form, key).await?;
        Ok(created.id)
    }

    /// Calls "Attach a `PaymentMethod` to a Customer". A bank may decline the card in this call already. From then on,
    /// use the id that this method returns.
    pub async fn attach_payment_method(
        &mut self,
        method: &PaymentMethodId,
        customer: &CustomerId,
        key: Uuid,
    ) -> Result<PaymentMethodId, StripeError> {
        let path = format!("/v1/payment_methods/{method}/attach");
        let form = [("customer".into(), customer.as_str())];
        match self.post::<Created<PaymentMethodId>>(&path, &form, key).await {
            Ok(attached) => Ok(attached.id),
            // 404 is about the object in the path. A missing customer would be a 400.
            Err(StripeError::Rejected { status: 404, code, message })
                if code.as_deref() == Some("resource_missing") =>
            {
                Err(StripeError::UnknownPaymentMethod { message })
            }
            Err(error) => Err(error),
        }
    }

    /// Calls "Update a customer". Sets the method that pays the customer's invoices, including the first invoice of a
    /// subscription.
    pub async fn set_default_payment_method(
        &mut self,
        customer: &CustomerId,
        method: &PaymentMethodId,
        key: Uuid,
    ) -> Result<(), StripeError> {
        let path = format!("/v1/customers/{customer}");
        let form = [("invoice_settings[default_payment_method]".into(), method.as_str())];
        self.post::<Created<CustomerId>>(&path, &form, key).await.map(drop)
    }

    /// Calls "Create a subscription". The customer's default method pays for it. When this returns `Ok`, the
    /// subscription is paid or needs no payment. If the payment fails, no subscription is left.
    ///
    /// `price` is the id of a Price (`price_...`) or the id chosen for a Plan.
    pub async fn create_subscription(
        &mut self,
        customer: &CustomerId,
        price: &str,
        metadata: &[(&str, &str)],
        key: Uuid,
    ) -> Result<SubscriptionId, StripeError> {
        // Stripe generates the ids of Prices. Only Plans have chosen ids.
        let item = if price.starts_with("price_") { "items[0][price]" } else { "items[0][plan]" };
        let mut form = vec![
            ("customer".into(), customer.as_str()),
            (item.into(), price),
            ("payment_behavior".into(), "error_if_incomplete"),
        ];
        form.extend(metadata.iter().map(in_metadata));
        let created: Subscription = self.post("/v1/subscriptions", &form, key).await?;
        if created.is_paid() {
            return Ok(created.id);
        }
        // With `error_if_incomplete`, Stripe should not create an unpaid subscription. If it does, the subscription
        // must not stay.
        self.cancel_subscription(&created.id).await?;
        Err(StripeError::Declined {
            code: "subscription_incomplete".into(),
            message: "The first payment did not succeed.".into(),
        })
    }

    /// Calls "List subscriptions" for all of a customer's subscriptions that are not cancelled. A customer that does
    /// not exist has none.
    pub async fn customer_subscriptions(
        &mut self,
        customer: &CustomerId,
    ) -> Result<Vec<Subscription>, StripeError> {
        let mut subscriptions: Vec<Subscription> = Vec::new();
        for _ in 0..MAX_PAGES {
            let mut query = Serializer::new(String::new());
            query.append_pair("customer", customer.as_str()).append_pair("limit", "100");
            if let Some(last) = subscriptions.last() {
                query.append_pair("starting_after", last.id.as_str());
            }
            let path = format!("/v1/subscriptions?{}", query.finish());
            let response = self.call(Method::GET, &path, None).await?;
            if response.is_missing() {
                return Ok(subscriptions);
            }
            let page: Page = response.read()?;
            let more = page.has_more && !page.data.is_empty();
            subscriptions.extend(page.data);
            if !more {
                return Ok(subscriptions);
            }
        }
        Err(StripeError::Unreadable(format!("more than {MAX_PAGES} pages of subscriptions")))
    }

    /// Calls "List subscriptions" for one page of the account's subscriptions that are not cancelled. The page starts
    /// after the subscription `after`.
    pub async fn subscriptions(
        &mut self,
        after: Option<&SubscriptionId>,
    ) -> Result<Page, StripeError> {
        let mut query = Serializer::new(String::new());
        query.append_pair("limit", "100");
        if let Some(after) = after {
            query.append_pair("starting_after", after.as_str());
        }
        let path = format!("/v1/subscriptions?{}", query.finish());
        self.call(Method::GET, &path, None).await?.read()
    }

    /// Calls "Cancel a subscription", at once and without refund. A subscription that is already cancelled or does
    /// not exist counts as cancelled.
    pub async fn cancel_subscription(&mut self, id: &SubscriptionId) -> Result<(), StripeError> {
        self.delete(&format!("/v1/subscriptions/{id}")).await
    }

    /// Calls "Delete a customer", which also ends its subscriptions and deletes its cards. A customer that is already
    /// deleted or does not exist counts as deleted.
    pub async fn delete_customer(&mut self, id: &CustomerId) -> Result<(), StripeError> {
        self.delete(&format!("/v1/customers/{id}")).await
    }

    async fn post<T: DeserializeOwned>(
        &mut self,
        path: &str,
        form: &[(Cow<'_, str>, &str)],
        key: Uuid,
    ) -> Result<T, StripeError> {
        let body = Serializer::new(String::new()).extend_pairs(form).finish();
        self.call(Method::POST, path, Some((body, key))).await?.read()
    }

    /// Sends a `DELETE` request. `DELETE` is idempotent by itself, so Stripe takes no idempotency key for it.
    async fn delete(&mut self, path: &str) -> Result<(), StripeError> {
        let response = self.call(Method::DELETE, path, None).await?;
        if response.is_missing() {
            return Ok(());
        }
        response.read::<Created<String>>().map(drop)
    }

    /// Sends one request and reads the response, whatever its status. If the deadline ends the call, the error is the
    /// same as for the call's own timeout. After the deadline no call is made.
    async fn call(
        &mut self,
        method: Method,
        path: &str,
        form_and_key: Option<(String, Uuid)>,
    ) -> Result<Response, StripeError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(header::AUTHORIZATION, self.key.0.clone())
            .header(header::USER_AGENT, USER_AGENT)
            .header("stripe-version", API_VERSION);
        let mut body = Bytes::new();
        if let Some((form, key)) = form_and_key {
            request = request
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .header("idempotency-key", key.to_string());
            body = form.into();
        }
        let request =
            request.body(body).map_err(|error| StripeError::Config(format!("{path}: {error}")))?;
        let remaining = self.deadline.map_or(self.call_timeout, Deadline::remaining);
        let limit = remaining.min(self.call_timeout);
        if limit.is_zero() {
            let reason = "the function's deadline passed before the call".to_owned();
            return Err(StripeError::Unavailable(reason));
        }
        let (at, key_read_at) = (Timestamp::now(), self.key_read_at);
        let down = |(name, message): (&str, String)| {
            Health::Down(CallError { name: name.to_owned(), message, at, key_read_at })
        };
        let limits = Limits { time: limit, body: MAX_RESPONSE_BYTES };
        let response = self.web.send(request, limits).await;
        let response = response
            .map(|response| {
                let (head, body) = response.into_parts();
                Response::new(head.status, &head.headers, body)
            })
            .map_err(|error| StripeError::Unavailable(error.to_string()));
        self.health = Some(match &response {
            Ok(response) => response.problem().map_or(Health::Up, down),
            Err(error) => down((NO_ANSWER, error.to_string())),
        });
        response
    }
}

/// The id of an object that a call created, changed or deleted.
#[derive(Deserialize)]
struct Created<Id> {
    id: Id,
}

/// A page of a list of subscriptions.
#[derive(Debug, Deserialize)]
pub struct Page {
    /// The subscriptions, newest first.
    pub data: Vec<Subscription>,
    /// Whether more subscriptions follow.
    pub has_more: bool,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorObject,
}

#[derive(Deserialize)]
struct ErrorObject {
    code: Option<String>,
    message: Option<String>,
}

struct Response {
    status: StatusCode,
    /// Stripe's id of the request, which Stripe's logs contain, too.
    request_id: Option<String>,
    /// Whether Stripe repeated the stored response of an earlier call with the same key.
    replayed: bool,
    body: Bytes,
    /// Stripe's error. `None` for a success, and for a response of an intermediary.
    error: Option<ErrorObject>,
}

impl Response {
    fn new(status: StatusCode, headers: &HeaderMap, body: Bytes) -> Self {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let error = (!status.is_success())
            .then(|| serde_json::from_slice::<ErrorBody>(&body).ok())
            .flatten()
            .map(|body| body.error);
        Self {
            status,
            request_id: text("request-id").map(str::to_owned),
            replayed: text("idempotent-replayed") == Some("true"),
            body,
            error,
        }
    }

    /// Returns whether Stripe says that the object does not exist: 404 for the object in the path, 400 for another.
    fn is_missing(&self) -> bool {
        self.error.as_ref().is_some_and(|error| {
            self.status == StatusCode::NOT_FOUND
                || error.code.as_deref() == Some("resource_missing")
        })
    }

    /// Returns the name and message of an error that would affect any call. Returns `None` for other responses.
    fn problem(&self) -> Option<(&'static str, String)> {
        let status = self.status.as_u16();
        let error = match status {
            401 | 403 => "KeyRefused",
            429 => "Throttled",
            500.. if !self.replayed => "ServerError",
            _ => return None,
        };
        let request = self.request_id.as_deref().map(|id| format!(" (request {id})"));
        Some((error, format!("HTTP status {status}{}", request.unwrap_or_default())))
    }

    fn read<T: DeserializeOwned>(self) -> Result<T, StripeError> {
        if self.status.is_success() {
            return serde_json::from_slice(&self.body)
                .map_err(|error| StripeError::Unreadable(error.to_string()));
        }
        Err(self.into_error())
    }

    fn into_error(self) -> StripeError {
        let (code, message) = match self.error {
            Some(error) => {
                let message = error.message.as_deref().unwrap_or("no message");
                (error.code, hide_payment_methods(message))
            }
            None => (None, "the response is not from Stripe".into()),
        };
        let status = self.status.as_u16();
        let request = self.request_id.as_deref().unwrap_or("none");
        let detail = format!("{message} (request id: {request})");
        match status {
            402 => {
                StripeError::Declined { code: code.unwrap_or_else(|| "declined".into()), message }
            }
            // The message is left out, because it can quote a part of the key.
            401 | 403 => StripeError::Unauthorized(status),
            500.. if self.replayed => {
                StripeError::IdempotencyKeySpent(format!("status {status}: {detail}"))
            }
            // 409: the first call with the key is still running. 424: a bank or network behind Stripe failed.
            408 | 409 | 424 | 429 | 500.. => {
                StripeError::Unavailable(format!("status {status}: {detail}"))
            }
            _ => StripeError::Rejected { status, code, message: detail },
        }
    }
}

/// Replaces the id of each payment method in a message of Stripe, because messages are stored and logged.
fn hide_payment_methods(message: &str) -> String {
    let is_of_id = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let mut shown = String::with_capacity(message.len());
    for part in message.split_inclusive(|c| !is_of_id(c)) {
        let word = part.trim_end_matches(|c| !is_of_id(c));
        if PAYMENT_METHOD_PREFIXES.iter().any(|prefix| word.starts_with(prefix)) {
            shown.push_str(HIDDEN_PAYMENT_METHOD);
            shown.push_str(&part[word.len()..]);
        } else {
            shown.push_str(part);
        }
    }
    shown
}

fn in_metadata<'a>((name, value): &(&str, &'a str)) -> (Cow<'static, str>, &'a str) {
    (format!("metadata[{name}]").into(), *value)
}

#[cfg(test)]
mod tests {
    use testkit::stripe::{Requests, response, response_with_header, serve};
    use tokio::net::TcpListener;

    use super::*;

    const SECRET: &str = "sk_test_4eC39HqLyjWDarjtT1zdp7dc";
    const NO_SUCH: &str = r#"{"error": {"code": "resource_missing", "message": "No such one"}}"#;
    type TestResult = Result<(), Box<dyn std::error::Error>>;

    /// Returns a client of a fake provider with these responses, and the requests that the provider receives.
    async fn server(responses: Vec<String>) -> std::io::Result<(Stripe, Requests)> {
        let (base, requests) = serve(responses).await?;
        let key = ApiKey::new(&format!("{SECRET}\n")).expect("a key");
        Ok((Stripe::new(&base, key).expect("a client"), requests))
    }

    fn customer() -> CustomerId {
        CustomerId("cus_1".into())
    }

    fn lines(requests: &[String]) -> Vec<&str> {
        requests.iter().filter_map(|request| request.lines().next()).collect()
    }

    fn body(request: &str) -> &str {
        request.split_once("\r\n\r\n").map_or("", |(_, body)| body)
    }

    #[tokio::test]
    async fn a_write_sends_key_version_and_form() -> TestResult {
        let (mut stripe, served) =
            server(vec![response(200, r#"{"id": "cus_9", "more": 1}"#)]).await?;
        let key = Uuid::from_u128(7);
        let id = stripe.create_customer("Ås & Co", &[("siteId", "a=b")], key).await?;
        assert_eq!(id.as_str(), "cus_9");
        let request = &served.await??[0];
        assert!(request.starts_with("POST /v1/customers HTTP/1.1\r\n"), "{request}");
        for header in [
            "content-type: application/x-www-form-urlencoded".to_owned(),
            format!("authorization: Bearer {SECRET}"),
            format!("idempotency-key: {key}"),
            format!("stripe-version: {API_VERSION}"),
            format!("user-agent: fieldstation/{}", env!("CARGO_PKG_VERSION")),
        ] {
            assert!(request.contains(&format!("{header}\r\n")), "{header} is not in {request}");
        }
        assert_eq!(body(request), "name=%C3%85s+%26+Co&metadata%5BsiteId%5D=a%3Db");
        Ok(())
    }

    #[tokio::test]
    async fn attaching_returns_the_real_id_and_the_default_is_set_on_the_customer() -> TestResult {
        let (mut stripe, served) = server(vec![
            response(200, r#"{"id": "pm_real"}"#),
            response(200, r#"{"id": "cus_1"}"#),
        ])
        .await?;
        let method_name = PaymentMethodId::try_from("pm_card_visa".to_owned())?;
        let method = stripe.attach_payment_method(&method_name, &customer(), Uuid::nil()).await?;
        stripe.set_default_payment_method(&customer(), &method, Uuid::nil()).await?;
        let requests = served.await??;
        assert_eq!(
            lines(&requests),
            [
                "POST /v1/payment_methods/pm_card_visa/attach HTTP/1.1",
                "POST /v1/customers/cus_1 HTTP/1.1"
            ]
        );
        assert_eq!(body(&requests[0]), "customer=cus_1");
        assert_eq!(body(&requests[1]), "invoice_settings%5Bdefault_payment_method%5D=pm_real");
        Ok(())
    }

    #[tokio::test]
    async fn a_subscription_is_created_for_a_price_or_a_plan_and_must_be_paid() -> TestResult {
        let active = response(200, r#"{"id": "sub_1", "status": "active"}"#);
        let (mut stripe, served) = server(vec![active.clone(), active]).await?;
        for price in ["price_1N", "fieldstation-standard"] {
            stripe.create_subscription(&customer(), price, &[], Uuid::nil()).await?;
        }
        let requests = served.await??;
        assert_eq!(
            [body(&requests[0]), body(&requests[1])],
            [
                "customer=cus_1&items%5B0%5D%5Bprice%5D=price_1N\
                 &payment_behavior=error_if_incomplete",
                "customer=cus_1&items%5B0%5D%5Bplan%5D=fieldstation-standard\
                 &payment_behavior=error_if_incomplete"
            ]
        );
        Ok(())
    }

    #[tokio::test]
    async fn an_unpaid_subscription_is_cancelled_and_reported_as_declined() -> TestResult {
        let (mut stripe, served) = server(vec![
            response(200, r#"{"id": "sub_1", "status": "incomplete"}"#),
            response(200, r#"{"id": "sub_1", "status": "canceled"}"#),
        ])
        .await?;
        let result = stripe.create_subscription(&customer(), "plan", &[], Uuid::nil()).await;
        assert!(matches!(result, Err(StripeError::Declined { .. })), "{result:?}");
        let requests = served.await??;
        assert_eq!(lines(&requests)[1], "DELETE /v1/subscriptions/sub_1 HTTP/1.1");
        assert!(!requests[1].contains("idempotency-key"), "{}", requests[1]);
        Ok(())
    }

    #[tokio::test]
    async fn each_status_maps_to_an_error() -> TestResult {
        let stripe_error = r#"{"error": {"type": "t", "code": "c", "message": "m"}}"#;
        for (status, body, expected) in [
            (400, stripe_error, r#"Rejected { status: 400, code: Some("c"), message: "m (request"#),
            (
                400,
                "<html>",
                "Rejected { status: 400, code: None, message: \"the response is not from Stripe",
            ),
            (401, stripe_error, "Unauthorized(401)"),
            (402, stripe_error, r#"Declined { code: "c", message: "m" }"#),
            (402, "{}", "Declined { code: \"declined\""),
            (403, stripe_error, "Unauthorized(403)"),
            (404, NO_SUCH, r#"Rejected { status: 404, code: Some("resource_missing")"#),
            (409, stripe_error, "Unavailable(\"status 409: m (request id: req_7)"),
            (424, stripe_error, "Unavailable"),
            (429, stripe_error, "Unavailable"),
            (500, stripe_error, "Unavailable"),
            (503, "<html>", "Unavailable"),
            (302, "", "Rejected { status: 302"),
            (200, "{\"id\": ", "Unreadable"),
            (200, "{\"id\": \"../x\"}", "Unreadable(\"not a Stripe id"),
        ] {
            let (mut stripe, _served) = server(vec![response(status, body)]).await?;
            let result = stripe.create_customer("n", &[], Uuid::nil()).await;
            let error = format!("{:?}", result.expect_err("an error"));
            assert!(error.starts_with(expected), "{status} {body}: {error}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_stored_server_error_makes_the_key_unusable_and_a_stored_decline_does_not()
    -> TestResult {
        let replayed = "idempotent-replayed: true";
        let body = r#"{"error": {"code": "card_declined", "message": "No."}}"#;
        let (mut stripe, _served) = server(vec![
            response_with_header(500, replayed, body),
            response_with_header(402, replayed, body),
        ])
        .await?;
        let first = stripe.create_customer("n", &[], Uuid::nil()).await;
        let second = stripe.create_customer("n", &[], Uuid::nil()).await;
        assert!(matches!(first, Err(StripeError::IdempotencyKeySpent(_))), "{first:?}");
        assert!(matches!(second, Err(StripeError::Declined { .. })), "{second:?}");
        Ok(())
    }

    #[tokio::test]
    async fn deleting_a_missing_object_succeeds() -> TestResult {
        let gone = response(404, NO_SUCH);
        let (mut stripe, served) = server(vec![
            gone.clone(),
            gone,
            response(200, r#"{"id": "cus_1", "deleted": true}"#),
            response(404, "<html>no such page</html>"),
            response(500, ""),
        ])
        .await?;
        stripe.cancel_subscription(&SubscriptionId("sub_1".into())).await?;
        stripe.delete_customer(&customer()).await?;
        stripe.delete_customer(&customer()).await?;
        // Neither response says that the customer does not exist.
        let not_stripe = stripe.delete_customer(&customer()).await;
        let broken = stripe.delete_customer(&customer()).await;
        assert!(matches!(not_stripe, Err(StripeError::Rejected { .. })), "{not_stripe:?}");
        assert!(matches!(broken, Err(StripeError::Unavailable(_))), "{broken:?}");
        let requests = served.await??;
        assert_eq!(
            lines(&requests)[..2],
            ["DELETE /v1/subscriptions/sub_1 HTTP/1.1", "DELETE /v1/customers/cus_1 HTTP/1.1"]
        );
        Ok(())
    }

    #[tokio::test]
    async fn subscriptions_are_listed_to_the_last_page() -> TestResult {
        let (mut stripe, served) = server(vec![
            response(200, r#"{"data": [{"id": "sub_1", "status": "past_due"}], "has_more": true}"#),
            response(
                200,
                r#"{"data": [{"id": "sub_2", "status": "brand_new"}], "has_more": false}"#,
            ),
            response(400, NO_SUCH),
        ])
        .await?;
        let subscriptions = stripe.customer_subscriptions(&customer()).await?;
        let statuses: Vec<_> =
            subscriptions.iter().map(|one| (one.id.as_str(), one.status)).collect();
        assert_eq!(
            statuses,
            [("sub_1", SubscriptionStatus::PastDue), ("sub_2", SubscriptionStatus::Other)]
        );
        assert!(stripe.customer_subscriptions(&customer()).await?.is_empty());
        let requests = served.await??;
        assert_eq!(
            lines(&requests)[..2],
            [
                "GET /v1/subscriptions?customer=cus_1&limit=100 HTTP/1.1",
                "GET /v1/subscriptions?customer=cus_1&limit=100&starting_after=sub_1 HTTP/1.1"
            ]
        );
        Ok(())
    }

    #[tokio::test]
    async fn a_timeout_a_truncated_response_and_a_refused_connection_are_unavailable() -> TestResult
    {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let base = format!("http://{}", listener.local_addr()?);
        let mut stripe = Stripe::new(&base, ApiKey::new(SECRET)?)?;
        stripe.call_timeout = Duration::from_millis(200);
        // The kernel accepts the connections, but nothing responds.
        let started = std::time::Instant::now();
        let timed_out = stripe.create_customer("n", &[], Uuid::nil()).await;
        assert!(started.elapsed() < CALL_TIMEOUT / 2, "{:?}", started.elapsed());
        assert!(
            format!("{timed_out:?}").contains("Unavailable(\"no response within 200ms"),
            "{timed_out:?}"
        );
        drop(listener);
        let refused = stripe.create_customer("n", &[], Uuid::nil()).await;
        assert!(format!("{refused:?}").contains("refused"), "{refused:?}");
        assert!(matches!(refused, Err(StripeError::Unavailable(_))), "{refused:?}");
        let half = "HTTP/1.1 200 x\r\ncontent-length: 99\r\n\r\n{".to_owned();
        let (mut stripe, _served) = server(vec![half]).await?;
        let truncated = stripe.create_customer("n", &[], Uuid::nil()).await;
        assert!(matches!(truncated, Err(StripeError::Unavailable(_))), "{truncated:?}");
        Ok(())
    }

    #[tokio::test]
    async fn a_deadline_ends_a_call_and_no_call_begins_after_it() -> TestResult {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let base = format!("http://{}", listener.local_addr()?);
        let client = Stripe::new(&base, ApiKey::new(SECRET)?)?;
        let mut stripe =
            client.clone().with_deadline(Some(Deadline::after(Duration::from_millis(200))));
        let timed_out = stripe.delete_customer(&customer()).await;
        assert!(matches!(timed_out, Err(StripeError::Unavailable(_))), "{timed_out:?}");
        let health = stripe.into_health();
        let Some(Health::Down(error)) = health else { panic!("{health:?}") };
        assert_eq!(error.name, NO_ANSWER);

        let mut late = client.with_deadline(Some(Deadline::after(Duration::ZERO)));
        let none = late.delete_customer(&customer()).await;
        assert!(matches!(none, Err(StripeError::Unavailable(_))), "{none:?}");
        assert_eq!(
            late.into_health(),
            None,
            "no call was made, so the provider's health is unknown"
        );
        Ok(())
    }

    #[tokio::test]
    async fn the_key_appears_in_no_output() -> TestResult {
        let quoting = format!(r#"{{"error": {{"message": "Invalid API Key: {SECRET}"}}}}"#);
        let (mut stripe, _served) = server(vec![response(401, &quoting)]).await?;
        assert_eq!(format!("{:?}", stripe.key), "ApiKey(hidden)");
        assert!(stripe.key.0.is_sensitive(), "code that logs headers would log the key");
        assert!(!format!("{stripe:?}").contains(SECRET), "{stripe:?}");
        let error = stripe.create_customer("n", &[], Uuid::nil()).await.expect_err("an error");
        assert!(!format!("{error} {error:?}").contains(SECRET), "{error:?}");
        Ok(())
    }

    #[tokio::test]
    async fn the_id_of_a_payment_method_appears_in_no_output() -> TestResult {
        let method = PaymentMethodId::try_from("pm_1Nx".to_owned())?;
        assert_eq!(format!("{method:?}"), "PaymentMethodId(***)");
        for (message, shown) in [
            (
                "No such PaymentMethod: 'pm_1Nx'; see pm_2-b.",
                "No such PaymentMethod: 'pm_***'; see pm_***.",
            ),
            ("card_1 and src_1é", "pm_*** and pm_***é"),
            ("The cus_1 has no xpm_1", "The cus_1 has no xpm_1"),
            ("", ""),
        ] {
            let body = serde_json::json!({ "error": { "message": message } }).to_string();
            for status in [400, 402, 429] {
                let (mut stripe, _served) = server(vec![response(status, &body)]).await?;
                let customer = CustomerId::try_from("cus_1".to_owned())?;
                let attached = stripe.attach_payment_method(&method, &customer, Uuid::nil()).await;
                let error = attached.expect_err("an error");
                assert!(format!("{error}").contains(shown), "{error}");
                assert!(!format!("{error} {error:?}").contains("pm_1Nx"), "{error:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn only_https_and_loopback_http_are_accepted() -> TestResult {
        for (base, allowed) in [
            ("https://api.stripe.com", true),
            ("http://127.0.0.1:8420/", true),
            ("http://[::1]:8420", true),
            ("http://localhost:8420", true),
            ("http://api.stripe.com", false),
            ("http://localhost.example.com", false),
            ("http://127.0.0.1@example.com", false),
            ("https://api.stripe.com?x=1", false),
            ("ftp://127.0.0.1", false),
            ("api.stripe.com", false),
            ("", false),
        ] {
            let created = Stripe::new(base, ApiKey::new(SECRET)?);
            assert_eq!(created.is_ok(), allowed, "{base}: {created:?}");
        }
        for key in ["", " \n", "sk_test\u{7f}"] {
            assert!(matches!(ApiKey::new(key), Err(StripeError::Config(_))), "{key:?}");
        }
        Ok(())
    }

    #[test]
    fn an_id_that_could_change_a_path_is_refused() {
        for id in ["", "pm_1/../../customers/cus_1?", "pm_1?x", "pm 1", "pm_é", &"p".repeat(256)] {
            assert!(PaymentMethodId::try_from(id.to_owned()).is_err(), "{id}");
            assert!(serde_json::from_value::<CustomerId>(id.into()).is_err(), "{id}");
        }
    }
}
