//! A fake of an `OpenID` Connect issuer.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::http::Stub;

/// A key set that a test can change. Without one, the issuer answers with status 500.
pub type KeySet = Arc<Mutex<Option<Vec<Value>>>>;

/// Starts a server with the configuration and the key set of an issuer.
///
/// # Panics
/// If a thread panicked while it changed the key set.
pub async fn serve(keys: KeySet) -> Stub {
    // The configuration contains the address, which is known only after the start.
    let address = Arc::new(Mutex::new(String::new()));
    let served = Arc::clone(&address);
    let stub = Stub::start(move |call| {
        let Some(keys) = keys.lock().expect("a key set").clone() else {
            return (500, json!({}));
        };
        let url = served.lock().expect("an address").clone();
        match call.path.as_str() {
            "/.well-known/openid-configuration" => {
                (200, json!({ "issuer": url, "jwks_uri": format!("{url}/keys") }))
            }
            "/keys" => (200, json!({ "keys": keys })),
            _ => (404, json!({})),
        }
    })
    .await;
    stub.url().clone_into(&mut address.lock().expect("an address"));
    stub
}
