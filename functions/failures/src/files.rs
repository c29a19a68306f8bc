//! Files of S3: the batches that streams' mappings gave up on, and payloads too long for a row.

use aws_sdk_s3::{
    Client,
    config::Builder,
    error::{DisplayErrorContext, SdkError},
    operation::get_object::GetObjectError,
};
use lambda::Aws;

use crate::{FailuresError, PayloadFile};

/// S3.
#[derive(Clone, Debug)]
pub struct Files {
    /// Its client.
    pub client: Client,
}

impl Files {
    /// On a laptop a bucket is a path below the endpoint: its name there is no host's.
    #[must_use]
    pub fn of(aws: &Aws) -> Self {
        let laptop = aws.config().endpoint_url().is_some();
        let config = Builder::from(aws.config()).force_path_style(laptop).build();
        Self { client: Client::from_conf(config) }
    }

    /// A file's content; nothing where there is no such file (for which S3 wants `s3:ListBucket`).
    pub async fn get(&self, file: &PayloadFile) -> Result<Option<Vec<u8>>, FailuresError> {
        let answer = self.client.get_object().bucket(&file.bucket).key(&file.key).send().await;
        let object = match answer {
            Ok(object) => object,
            Err(error) => {
                return match error.as_service_error() {
                    Some(GetObjectError::NoSuchKey(_)) => Ok(None),
                    _ => Err(trouble(file, &error)),
                };
            }
        };
        match object.body.collect().await {
            Ok(content) => Ok(Some(content.to_vec())),
            Err(error) => Err(failed(file, error.to_string())),
        }
    }

    /// Puts a file, in the place of the one that is there.
    pub async fn put(&self, file: &PayloadFile, content: &str) -> Result<(), FailuresError> {
        let put = self.client.put_object().bucket(&file.bucket).key(&file.key);
        let put = put.content_type("application/json").body(content.as_bytes().to_vec().into());
        put.send().await.map(|_| ()).map_err(|error| trouble(file, &error))
    }
}

fn trouble<E: std::error::Error + 'static>(
    file: &PayloadFile,
    error: &SdkError<E>,
) -> FailuresError {
    failed(file, DisplayErrorContext(error).to_string())
}

fn failed(file: &PayloadFile, reason: String) -> FailuresError {
    FailuresError::File { bucket: file.bucket.clone(), key: file.key.clone(), reason }
}
