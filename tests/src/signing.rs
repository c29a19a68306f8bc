//! Signs HTTP requests to AWS with Signature Version 4, for calls without an SDK client: calls to the REST API, and to
//! AWS services whose client crate the workspace does not use.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{self, SignableBody, SignableRequest, SigningSettings},
    sign::v4,
};
use reqwest::{
    Method,
    header::{HeaderMap, HeaderName, HeaderValue},
};

/// The error for a request that can't be signed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SigningError(String);

impl SigningError {
    fn new(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// The credentials, region and service of a request to sign.
#[derive(Clone, Debug)]
pub struct Signer<'a> {
    /// The caller's credentials.
    pub credentials: Credentials,
    /// The region of the service.
    pub region: &'a str,
    /// The service's signing name, such as `execute-api`.
    pub service: &'a str,
}

impl Signer<'_> {
    /// Adds the signature headers to a request. Existing headers are signed, except those with a value outside ASCII
    /// and those that aws-sigv4 excludes by default, such as `user-agent`.
    pub fn sign(
        self,
        method: &Method,
        uri: &str,
        headers: &mut HeaderMap,
        body: &[u8],
    ) -> Result<(), SigningError> {
        let identity = self.credentials.into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(self.region)
            .name(self.service)
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .map_err(SigningError::new)?
            .into();
        let texts =
            headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let signable = SignableRequest::new(method.as_str(), uri, texts, SignableBody::Bytes(body))
            .map_err(SigningError::new)?;
        let signature = http_request::sign(signable, &params).map_err(SigningError::new)?;
        let (added, _) = signature.into_parts().0.into_parts();
        for header in added {
            let name = HeaderName::try_from(header.name()).map_err(SigningError::new)?;
            let value = HeaderValue::try_from(header.value()).map_err(SigningError::new)?;
            headers.insert(name, value);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(key: &'static str) -> HeaderMap {
        let credentials = Credentials::new("AKID", "secret", Some("token".into()), None, "test");
        let signer = Signer { credentials, region: "eu-central-1", service: "execute-api" };
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("x.y"));
        headers
            .insert("idempotency-key", HeaderValue::from_bytes(key.as_bytes()).expect("a value"));
        let url = "https://x.y/prod/sites";
        signer.sign(&Method::POST, url, &mut headers, b"{}").expect("a signature");
        headers
    }

    #[test]
    fn the_signature_names_the_caller_the_service_and_the_headers() {
        for (key, names) in [
            ("key-1", "host;idempotency-key;x-amz-date;x-amz-security-token"),
            ("ä", "host;x-amz-date;x-amz-security-token"),
        ] {
            let headers = signed(key);
            let text = |name: &str| headers[name].to_str().expect("a text").to_owned();
            let signature = text("authorization");
            assert!(signature.starts_with("AWS4-HMAC-SHA256 Credential=AKID/"), "{signature}");
            assert!(signature.contains("/eu-central-1/execute-api/aws4_request, "), "{signature}");
            assert!(signature.contains(&format!("SignedHeaders={names}, ")), "{signature}");
            assert_eq!(text("x-amz-security-token"), "token");
        }
    }
}
