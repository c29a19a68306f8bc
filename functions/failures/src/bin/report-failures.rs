//! Lambda function `report-failures`.

use failures::report_failures::ReportFailures;
use lambda::{Aws, Error, serve_step};
use ledger::Ledger;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    serve_step(ReportFailures { ledger: Ledger { failures: aws.table("FAILURES_TABLE")? } }).await
}
