//! The command `fieldctl operators`.

use clap::{ArgGroup, Subcommand, ValueEnum};
use contracts::{
    OperatorId, Plan, Timestamp,
    operators::{OperatorPatch, OperatorRegistration, OperatorStatus},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    api::Call,
    commands::confirm,
    error::{CliError, Exit},
    output::{Screen, Tone},
    render::{Table, ago, plain},
    resolve,
    stack::Stack,
    trace::status_tone,
};

/// Commands for operators.
#[derive(Debug, Subcommand)]
pub enum Operators {
    /// Lists the operators, without the default operator. That one owns everything from before there were operators.
    List,
    /// Shows an operator.
    Show {
        /// The operator: its id, the first digits of it, or its name.
        operator: String,
    },
    /// Creates an operator.
    Create {
        /// The operator's name.
        name: String,
        /// The operator's plan.
        #[arg(long, value_enum)]
        plan: PlanName,
        /// The idempotency key. Repeating a command with the same key creates no second operator. The default is a new
        /// key.
        #[arg(long)]
        idempotency_key: Option<String>,
    },
    /// Changes the name or the plan of an operator.
    #[command(group = ArgGroup::new("change").required(true).multiple(true))]
    Update {
        /// The operator: its id, the first digits of it, or its name.
        operator: String,
        /// The new name.
        #[arg(long, group = "change")]
        name: Option<String>,
        /// The new plan.
        #[arg(long, value_enum, group = "change")]
        plan: Option<PlanName>,
    },
    /// Suspends an operator: all its keys and tokens are refused until it is resumed.
    ///
    /// Its sites, sensors and readings stay, and producers on the stream and the bus can still send.
    Suspend {
        /// The operator: its id, the first digits of it, or its name.
        operator: String,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
    /// Accepts the keys and tokens of a suspended operator again.
    Resume {
        /// The operator: its id, the first digits of it, or its name.
        operator: String,
    },
}

/// The plan of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PlanName {
    /// Free of charge, for public networks.
    Community,
    /// Paid per site and month.
    Standard,
    /// Like standard, with priority support.
    Professional,
}

impl From<PlanName> for Plan {
    fn from(name: PlanName) -> Self {
        match name {
            PlanName::Community => Self::Community,
            PlanName::Standard => Self::Standard,
            PlanName::Professional => Self::Professional,
        }
    }
}

impl Operators {
    /// Runs the command.
    pub async fn run(self, stack: &Stack, screen: &mut Screen) -> Result<Exit, CliError> {
        match self {
            Self::List => list(stack, screen).await,
            Self::Show { operator } => {
                let operator = resolve::operator(stack, &operator).await?;
                let operator = stack.call(Call::get(format!("/operators/{operator}"))).await?;
                show(screen, &operator)
            }
            Self::Create { name, plan, idempotency_key } => {
                let registration = OperatorRegistration { name, plan: plan.into() };
                create(stack, screen, &registration, idempotency_key).await
            }
            Self::Update { operator, name, plan } => {
                let operator = resolve::operator(stack, &operator).await?;
                let plan = plan.map(Plan::from);
                let patch = OperatorPatch { name, plan, ..OperatorPatch::default() };
                update(stack, screen, operator, &patch).await
            }
            Self::Suspend { operator, yes } => {
                let operator = resolve::operator(stack, &operator).await?;
                let found = stack.call(Call::get(format!("/operators/{operator}"))).await?;
                let name = text(&found, "name");
                confirm(&format!("Suspend {name} ({operator})? Its callers are refused."), yes)?;
                set_status(stack, screen, operator, OperatorStatus::Suspended).await
            }
            Self::Resume { operator } => {
                let operator = resolve::operator(stack, &operator).await?;
                set_status(stack, screen, operator, OperatorStatus::Active).await
            }
        }
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or("?")
}

async fn list(stack: &Stack, screen: &mut Screen) -> Result<Exit, CliError> {
    let operators = stack.all("/operators", "operators").await?;
    if screen.json {
        operators.iter().try_for_each(|operator| screen.entry(operator))?;
    } else if operators.is_empty() {
        screen.line("No operators found.")?;
    } else {
        let row = |operator| {
            let created = text(operator, "createdAt").parse::<Timestamp>();
            let status = text(operator, "status");
            vec![
                (status.to_owned(), status_tone(status)),
                plain(screen.id(text(operator, "operatorId"))),
                plain(text(operator, "plan")),
                (created.map_or("?".to_owned(), |at| ago(screen.now, at)), Tone::Faint),
                (text(operator, "name").to_owned(), Tone::Strong),
            ]
        };
        let rows: Vec<_> = operators.iter().map(row).collect();
        Table::new(["STATUS", "OPERATOR", "PLAN", "CREATED", "NAME"]).page(screen, &rows)?;
    }
    Ok(Exit::Done)
}

fn show(screen: &mut Screen, operator: &Value) -> Result<Exit, CliError> {
    if screen.json {
        screen.document(operator)?;
    } else {
        screen.field("operator", Tone::Strong, text(operator, "name"))?;
        screen.field("operatorId", Tone::Plain, text(operator, "operatorId"))?;
        screen.field("status", status_tone(text(operator, "status")), text(operator, "status"))?;
        screen.field("plan", Tone::Plain, text(operator, "plan"))?;
        // The default operator was never created.
        if let Some(created) = operator["createdAt"].as_str() {
            screen.field("created", Tone::Faint, created)?;
        }
    }
    Ok(Exit::Done)
}

async fn create(
    stack: &Stack,
    screen: &mut Screen,
    registration: &OperatorRegistration,
    key: Option<String>,
) -> Result<Exit, CliError> {
    let key = key.unwrap_or_else(|| Uuid::new_v4().to_string());
    let call = Call::post("/operators", json!(registration).to_string()).idempotency_key(&key);
    let operator = stack.call(call).await.map_err(|error| {
        if error.may_be_done {
            // With the same key, a retry creates no second operator.
            error.advise(format!("to retry safely, add --idempotency-key {key}"))
        } else {
            error
        }
    })?;
    show(screen, &operator)
}

async fn set_status(
    stack: &Stack,
    screen: &mut Screen,
    operator: OperatorId,
    status: OperatorStatus,
) -> Result<Exit, CliError> {
    let patch = OperatorPatch { status: Some(status), ..OperatorPatch::default() };
    update(stack, screen, operator, &patch).await
}

async fn update(
    stack: &Stack,
    screen: &mut Screen,
    operator: OperatorId,
    patch: &OperatorPatch,
) -> Result<Exit, CliError> {
    let call = Call::patch(format!("/operators/{operator}"), json!(patch).to_string());
    let operator = stack.call(call).await?;
    show(screen, &operator)?;
    if !screen.json && (patch.plan.is_some() || patch.status.is_some()) {
        screen.line("The API may use the former plan and status for another two minutes.")?;
    }
    Ok(Exit::Done)
}
