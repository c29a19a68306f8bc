//! `GET /operators/{operatorId}` returns an operator. `GET /operators` lists the registered operators.

use contracts::{OperatorId, Scope};
use lambda::http::{self, Caller, Problem, Request, Response};
use serde::Serialize;
use store::{StoreError, Table, from_item};

use crate::{
    OperatorRow, create_operator::Operator, listing::Listing, operator_in_path, unknown_operator,
};

/// The dependencies of the function `get-operator`.
#[derive(Debug)]
pub struct GetOperator {
    /// The operators table.
    pub operators: Table,
}

#[derive(Debug, Serialize)]
struct Page {
    operators: Vec<Operator>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl GetOperator {
    /// Returns one operator if the path has an id, otherwise a page of the list. Only for administrators.
    ///
    /// The list does not contain the default operator, which nobody registered.
    pub async fn handle(&self, caller: &Caller, request: &Request) -> Result<Response, Problem> {
        caller.require(caller.scope == Scope::Admin)?;
        if !request.path_parameters.contains_key("operatorId") {
            let listing = Listing::from_request(caller, request)?;
            let page = self.list(listing).await?;
            return Response::new(200, &page);
        }
        http::reject_query(request)?;
        let operator = operator_in_path(request)?;
        let body = self.operator(operator).await?;
        let body = body.ok_or_else(|| unknown_operator(operator))?;
        Response::new(200, &body)
    }

    async fn operator(&self, operator: OperatorId) -> Result<Option<Operator>, StoreError> {
        if operator == OperatorId::DEFAULT {
            return Ok(Some(Operator::default_operator()));
        }
        let row = self.operators.get(&OperatorRow::key(operator)).await?;
        Ok(row.map(|row| Operator::new(operator, row)))
    }

    async fn list(&self, listing: Listing) -> Result<Page, StoreError> {
        let query = self
            .operators
            .query("#list = :list AND listed > :after")
            .index("byCreation")
            .text("list", OperatorRow::LIST);
        let (items, next) = listing.read(query, "listed").await?;
        let operator = |item: store::Item| {
            let name = || "of the operators table".to_owned();
            let id: Identified = from_item(item.clone(), name)?;
            Ok(Operator::new(id.id, from_item(item, name)?))
        };
        let operators = items.into_iter().map(operator).collect::<Result<_, StoreError>>()?;
        Ok(Page { operators, next })
    }
}

/// The key of a row.
#[derive(serde::Deserialize)]
struct Identified {
    id: OperatorId,
}
