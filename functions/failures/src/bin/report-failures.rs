//! Lambda function `report-failures`.

use failures::{ledger::Ledger, report_failures::ReportFailures};
use lambda::{Aws, Error, serve_step};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    serve_step(ReportFailures { ledger: Ledger { failures: aws.table("FAILURES_TABLE")? } }).await
}
