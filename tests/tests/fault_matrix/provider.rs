//! Stores responses by idempotency key: a request with a known key gets the first response and has no effect. Stripe
//! does this, its emulator does not.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use hyper::body::Bytes;

use crate::proxy::{ProxyRequest, ProxyResponse};

/// The idempotency keys and their responses.
#[derive(Debug, Default)]
pub struct IdempotencyCache(Mutex<HashMap<String, CachedResponse>>);

#[derive(Debug)]
struct CachedResponse {
    /// The method, path and body of the first request with the key.
    request: (String, String, Bytes),
    /// The first response, or `None` while the call is in progress.
    response: Option<ProxyResponse>,
}

/// The result of looking up a key.
pub enum Lookup {
    /// The key is new: the call must be made.
    New,
    /// The key is known: this is the response.
    Known(ProxyResponse),
}

impl IdempotencyCache {
    /// Looks up the call's key, and claims it if it is new.
    pub fn claim(&self, key: &str, request: &ProxyRequest) -> Lookup {
        let request = (request.method.to_string(), request.path.clone(), request.body.clone());
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(key) {
            None => {
                known.insert(key.to_owned(), CachedResponse { request, response: None });
                Lookup::New
            }
            Some(cached) if cached.request != request => Lookup::Known(error(
                400,
                "idempotency_error",
                "Keys for idempotent requests can only be used with the same parameters.",
            )),
            Some(CachedResponse { response: None, .. }) => Lookup::Known(error(
                409,
                "idempotency_error",
                "There is currently another in-progress request using this key.",
            )),
            Some(CachedResponse { response: Some(response), .. }) => {
                Lookup::Known(response.clone().with("idempotent-replayed", "true"))
            }
        }
    }

    /// Stores the response. If the request was refused before its execution, the key becomes free again.
    pub fn store(&self, key: &str, response: Option<&ProxyResponse>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match response.filter(|response| !matches!(response.status(), 400 | 401 | 404 | 409 | 429))
        {
            Some(response) => {
                if let Some(cached) = known.get_mut(key) {
                    cached.response = Some(response.clone());
                }
            }
            None => drop(known.remove(key)),
        }
    }
}

fn error(status: u16, kind: &str, message: &str) -> ProxyResponse {
    let body = serde_json::json!({ "error": { "type": kind, "message": message } });
    ProxyResponse::new(status, body.to_string())
}
