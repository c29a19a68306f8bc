"""Upper bounds, in USD, of what a step costs on AWS."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRICES = {name: price["usd"] / price["per"] for name, price in json.loads((ROOT / "tools" / "cost" / "prices.json").read_text()).items()}

# Prices that the cost model does not need, per unit. Source: the pricing page of each service, Frankfurt, 2026.
PRICES |= {
    # CloudWatch: a metric of GetMetricData, or a call of ListMetrics, GetMetricStatistics or DescribeAlarms.
    "metricRequest": 0.01 / 1_000,
    # Secrets Manager: a call.
    "secretRequest": 0.05 / 10_000,
    # S3: a PUT of the failure bucket.
    "filePut": 0.0054 / 1_000,
    # An hour of an alarm, and of a secret or the dashboard, in an environment that a step creates.
    "alarmHour": 0.10 / 730,
    "dashboardHour": 3 / 730,
}

# Regions differ. The most expensive region costs less than twice the prices of prices.json.
MARGIN = 2

# One site: onboarded and undone, with three attempts of each call.
SITE = {
    "apiRequest": 200, "request": 200, "gigabyteSecond": 100, "transition": 60, "event": 60, "queueRequest": 200,
    "writeUnit": 600, "readUnit": 600, "trace": 300, "logGigabyte": 0.01, "putPayloadUnit": 20,
}


def times(count, units):
    """Multiplies units."""
    return {name: count * number for name, number in units.items()}


def plus(*parts):
    """Adds units."""
    names = {name for part in parts for name in part}
    return {name: sum(part.get(name, 0) for part in parts) for name in names}


def usd(units):
    """Returns the price of units, with the margin for more expensive regions."""
    return MARGIN * sum(PRICES[name] * number for name, number in units.items())
