//! Lambda function `authorise-caller`.

use aws_sdk_secretsmanager::Client;
use lambda::{Aws, Error, env, serve_step};
use operators::{
    authorise_caller::{AuthoriseCaller, CachedOperators, bootstrap_secret},
    issuer::Issuer,
};
use secret::Source;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let issuer = std::env::var("OIDC_ISSUER").unwrap_or_default();
    let step = AuthoriseCaller {
        keys: aws.table("KEYS_TABLE")?,
        operators: aws.table("OPERATORS_TABLE")?,
        bootstrap: bootstrap_secret(Source::SecretsManager {
            secrets: Client::new(aws.config()),
            id: env("FIRST_ADMINISTRATOR_SECRET_ARN")?,
        }),
        issuer: match issuer.as_str() {
            "" => None,
            issuer => Some(Issuer::new(issuer, &env("OIDC_AUDIENCE")?)?),
        },
        cached_operators: CachedOperators::default(),
    };
    serve_step(step).await
}
