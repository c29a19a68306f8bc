//! The memory for idempotency keys that Stripe has and its stand-in has not: the same key again is
//! answered as the first time, and nothing is done.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use hyper::body::Bytes;

use crate::proxy::{Answer, Asked};

/// What Stripe knows of its clients' keys.
#[derive(Debug, Default)]
pub struct Memory(Mutex<HashMap<String, Kept>>);

#[derive(Debug)]
struct Kept {
    /// Method, path and body that the key came with.
    request: (String, String, Bytes),
    /// The first answer; none while the call is under way.
    answer: Option<Answer>,
}

/// What a key means.
pub enum Key {
    /// The call is to be done.
    New,
    /// This is the answer.
    Known(Answer),
}

impl Memory {
    /// Looks the call's key up, and takes it if it is new.
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

    /// Keeps the answer. What was refused before it was begun is not kept.
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
