//! Lambda function `import-site`.

use lambda::{Aws, ConfigError, Error, serve_step};
use sites::{
    import_site::{ImportSite, SourceOperators},
    registration::Registrar,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    serve_step(ImportSite {
        registrar: Registrar { sites: aws.table("SITES_TABLE")?, outbox: aws.outbox()? },
        operators: source_operators()?,
    })
    .await
}

fn source_operators() -> Result<SourceOperators, ConfigError> {
    let name = "SOURCE_OPERATORS";
    // It is empty if every source belongs to the default operator.
    let text = std::env::var(name).map_err(|error| error.to_string());
    text.and_then(|text| text.parse()).map_err(|problem| ConfigError { name, problem })
}
