//! Reads and writes files in S3: batches that an event source mapping gave up on, and payloads too long for a row.

use std::time::Duration;

use aws_sdk_s3::{
    Client,
    config::{Builder, http::HttpResponse},
    error::{ProvideErrorMetadata, SdkError},
    operation::get_object::GetObjectError,
};
use aws_types::SdkConfig;
use fault::AwsErrorKind;

use crate::{LedgerError, PayloadFile};

/// The maximum size of a file that is read, in bytes. The largest files contain an event of Lambda, which has at most 6
/// MB. The event is an escaped string in the file's JSON, so it takes at most twice that size.
pub const MAX_FILE_BYTES: usize = 16 * 1024 * 1024;
/// The timeout for reading a file.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The result of reading a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The file's bytes.
    Bytes(Vec<u8>),
    /// The file can't be read, and a retry would fail too. Contains the reason, such as `is gone`.
    Unreadable(String),
}

/// Access to files in S3.
#[derive(Clone, Debug)]
pub struct Files {
    /// The client of S3.
    pub client: Client,
}

impl Files {
    /// Creates a client from this configuration. A custom endpoint belongs to an emulator. Requests to an emulator have
    /// the bucket in the path, because a host name that contains the bucket can't be resolved.
    #[must_use]
    pub fn new(config: &SdkConfig) -> Self {
        let emulator = config.endpoint_url().is_some();
        let config = Builder::from(config).force_path_style(emulator).build();
        Self { client: Client::from_conf(config) }
    }

    /// Reads a file. If the caller lacks the permission `s3:ListBucket`, S3 reports a missing file as forbidden.
    ///
    /// # Errors
    /// Returns an error if a retry may succeed.
    pub async fn get(&self, file: &PayloadFile) -> Result<Content, LedgerError> {
        match tokio::time::timeout(READ_TIMEOUT, self.read(file)).await {
            Ok(content) => content,
            Err(_) => {
                Err(file_error(file, format!("not read within {} s", READ_TIMEOUT.as_secs())))
            }
        }
    }

    async fn read(&self, file: &PayloadFile) -> Result<Content, LedgerError> {
        let response = self.client.get_object().bucket(&file.bucket).key(&file.key).send().await;
        let mut object = match response {
            Ok(object) => object,
            Err(error) => {
                return match unreadable(&error) {
                    Some(reason) => Ok(Content::Unreadable(reason)),
                    None => Err(call_error(file, &error)),
                };
            }
        };
        let too_large = || Ok(Content::Unreadable(format!("has more than {MAX_FILE_BYTES} bytes")));
        let size = object.content_length().and_then(|length| usize::try_from(length).ok());
        if size.is_some_and(|length| length > MAX_FILE_BYTES) {
            return too_large();
        }
        let mut content = Vec::with_capacity(size.unwrap_or_default());
        while let Some(bytes) = object.body.next().await {
            content.extend(bytes.map_err(|error| file_error(file, error.to_string()))?);
            if content.len() > MAX_FILE_BYTES {
                return too_large();
            }
        }
        Ok(Content::Bytes(content))
    }

    /// Writes a file. Replaces an existing one.
    pub async fn put(&self, file: &PayloadFile, content: &str) -> Result<(), LedgerError> {
        let put = self.client.put_object().bucket(&file.bucket).key(&file.key);
        let put = put.content_type("application/json").body(content.as_bytes().to_vec().into());
        put.send().await.map(|_| ()).map_err(|error| call_error(file, &error))
    }
}

/// Returns why a file can't be read. Returns `None` if a retry may succeed, for instance with other credentials.
fn unreadable(error: &SdkError<GetObjectError, HttpResponse>) -> Option<String> {
    if !matches!(AwsErrorKind::classify(error), AwsErrorKind::Denied | AwsErrorKind::Refused) {
        return None;
    }
    match error.as_service_error() {
        Some(GetObjectError::NoSuchKey(_)) => Some("is gone".to_owned()),
        service => {
            let code = service.map_or("the bucket or key is not valid", |service| {
                service.code().unwrap_or("no error code")
            });
            let message = service.and_then(ProvideErrorMetadata::message).unwrap_or("no message");
            Some(format!("can't be read: {code}: {message}"))
        }
    }
}

fn call_error<E: std::error::Error + 'static>(
    file: &PayloadFile,
    error: &SdkError<E>,
) -> LedgerError {
    file_error(file, fault::describe(error))
}

fn file_error(file: &PayloadFile, reason: String) -> LedgerError {
    LedgerError::File { bucket: file.bucket.clone(), key: file.key.clone(), reason }
}
