//! Stores responses by idempotency key, which Stripe does and its emulator does not: a repeated key gets the
//! first response, and nothing is done.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use hyper::body::Bytes;

use crate::proxy::{Answer, Asked};

/// The idempotency keys and their responses.
#[derive(Debug, Default)]
pub struct Memory(Mutex<HashMap<String, Kept>>);

#[derive(Debug)]
struct Kept {
    /// The method, path and body of the first request with the key.
    request: (String, String, Bytes),
    /// The first response, or `None` while the call is in progress.
    answer: Option<Answer>,
}

/// The result of looking up a key.
pub enum Key {
    /// The key is new: the call must be made.
    New,
    /// The key is known: this is the response.
    Known(Answer),
}

impl Memory {
    /// Looks up the call's key, and claims it if it is new.
    pub fn enter(&self, key: &str, asked: &Asked) -> Key {
        let request = (asked.method.to_string(), asked.path.clone(), asked.body.clone());
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(key) {
            None => {
                known.insert(key.to_owned(), Kept { request, answer: None });
                Key::New
            }
            Some(kept) if kept.request != request => Key::Known(refusal(
                400,
                "idempotency_error",
                "Keys for idempotent requests can only be used with the same parameters.",
            )),
            Some(Kept { answer: None, .. }) => Key::Known(refusal(
                409,
                "idempotency_error",
                "There is currently another in-progress request using this key.",
            )),
            Some(Kept { answer: Some(answer), .. }) => {
                Key::Known(answer.clone().with("idempotent-replayed", "true"))
            }
        }
    }

    /// Stores the response. A request that was refused before it was executed is not stored.
    pub fn leave(&self, key: &str, answer: Option<&Answer>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match answer.filter(|answer| !matches!(answer.status(), 400 | 401 | 404 | 409 | 429)) {
            Some(answer) => {
                if let Some(kept) = known.get_mut(key) {
                    kept.answer = Some(answer.clone());
                }
            }
            None => drop(known.remove(key)),
        }
    }
}

fn refusal(status: u16, kind: &str, message: &str) -> Answer {
    let body = serde_json::json!({ "error": { "type": kind, "message": message } });
    Answer::new(status, body.to_string())
}
