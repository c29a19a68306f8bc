//! A fake S3 with files in memory.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use aws_types::SdkConfig;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{Response, StatusCode},
    routing::get,
};
use tokio::net::TcpListener;

use crate::http::config;

/// The bucket and the key of a file.
type Location = (String, String);

/// A fake S3 with buckets of any name. A client must use path-style URLs: `http://host/bucket/key`.
#[derive(Debug)]
pub struct Buckets {
    url: String,
    store: Store,
}

#[derive(Clone, Debug, Default)]
struct Store {
    files: Arc<Mutex<BTreeMap<Location, Bytes>>>,
    down: Arc<AtomicBool>,
    refusal: Arc<Mutex<Option<(u16, &'static str)>>>,
}

impl Buckets {
    /// Starts an empty fake.
    ///
    /// # Panics
    /// If no port is free.
    pub async fn start() -> Self {
        let store = Store::default();
        let router = Router::new()
            .route("/{bucket}/{*key}", get(read).put(write))
            .with_state(store.clone())
            .layer(axum::extract::DefaultBodyLimit::disable());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, store }
    }

    /// Returns a configuration for clients of this fake.
    #[must_use]
    pub fn config(&self) -> SdkConfig {
        config(&self.url)
    }

    /// Makes the fake respond to every call with 503, or work again.
    pub fn down(&self, down: bool) {
        self.store.down.store(down, Ordering::Relaxed);
    }

    /// Makes the fake refuse all reads with this status and error code, or work again.
    ///
    /// # Panics
    /// If another thread of the test panicked.
    pub fn refuse(&self, refusal: Option<(u16, &'static str)>) {
        *self.store.refusal.lock().expect("the lock") = refusal;
    }

    /// Stores a file.
    ///
    /// # Panics
    /// If another thread of the test panicked.
    pub fn put(&self, bucket: &str, key: &str, content: impl Into<Bytes>) {
        let location = (bucket.to_owned(), key.to_owned());
        self.store.files.lock().expect("the lock").insert(location, content.into());
    }

    /// Returns a file's content.
    ///
    /// # Panics
    /// If another thread of the test panicked.
    #[must_use]
    pub fn file(&self, bucket: &str, key: &str) -> Option<Bytes> {
        let location = (bucket.to_owned(), key.to_owned());
        self.store.files.lock().expect("the lock").get(&location).cloned()
    }
}

async fn read(State(store): State<Store>, Path(location): Path<Location>) -> Response<Body> {
    let file = store.files.lock().expect("the lock").get(&location).cloned();
    if let Some((status, code)) = *store.refusal.lock().expect("the lock") {
        return refused(status, code);
    }
    match file {
        _ if store.down.load(Ordering::Relaxed) => refused(503, "SlowDown"),
        Some(content) => Response::new(content.into()),
        None => refused(404, "NoSuchKey"),
    }
}

async fn write(
    State(store): State<Store>,
    Path(location): Path<Location>,
    content: Bytes,
) -> Response<Body> {
    if store.down.load(Ordering::Relaxed) {
        return refused(503, "SlowDown");
    }
    store.files.lock().expect("the lock").insert(location, content);
    Response::new(Body::empty())
}

fn refused(status: u16, code: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(format!("<Error><Code>{code}</Code></Error>")));
    *response.status_mut() = StatusCode::from_u16(status).expect("an HTTP status");
    response
}
