//! `__ai_N` as DataFusion sees it: a scalar function with the call's exact type, so that SQL is planned and typed as
//! usual. It is never evaluated: `plan::lift` replaces it before anything runs.

use std::any::Any;
use std::hash::{Hash, Hasher};

use arrow::datatypes::DataType;
use datafusion::common::{Result, internal_err, plan_err};
use datafusion::logical_expr::{ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};

/// The placeholder of one AI call.
#[derive(Debug)]
pub(crate) struct AiFunction {
    name: String,
    /// Index of the call.
    pub(crate) index: usize,
    /// The function's name as users know it.
    function: &'static str,
    values: usize,
    returns: DataType,
    signature: Signature,
}

impl AiFunction {
    /// The placeholder of call `index`.
    pub(crate) fn new(index: usize, function: &'static str, values: usize, returns: DataType) -> Self {
        let name = format!("{}{index}", super::OWN_PREFIX);
        // Immutable would let the optimiser evaluate it, were it ever to see it.
        Self { name, index, function, values, returns, signature: Signature::user_defined(Volatility::Volatile) }
    }

    /// The call's index and arguments, if the expression is an AI call.
    pub(crate) fn of(expr: &Expr) -> Option<(&AiFunction, &[Expr])> {
        match expr {
            Expr::ScalarFunction(function) => {
                let inner: &dyn Any = function.func.inner().as_ref();
                Some((inner.downcast_ref::<AiFunction>()?, &function.args))
            }
            _ => None,
        }
    }

    /// Type of the answer.
    pub(crate) fn returns(&self) -> &DataType {
        &self.returns
    }
}

impl PartialEq for AiFunction {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.returns == other.returns
    }
}

impl Eq for AiFunction {}

impl Hash for AiFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for AiFunction {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(self.returns.clone())
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        if arguments.len() != self.values {
            return internal_err!("{} has {} values, not {}", self.name, self.values, arguments.len());
        }
        for argument in arguments {
            if !arrow::compute::can_cast_types(argument, &DataType::Utf8) {
                return plan_err!(
                    "{} cannot read a value of type {argument}: it is not text and cannot be shown as text",
                    self.function
                );
            }
        }
        Ok(vec![DataType::Utf8; arguments.len()])
    }

    fn invoke_with_args(&self, _arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        internal_err!("{} was evaluated as a plain function", self.function)
    }
}
