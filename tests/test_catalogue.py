"""What is read of Stripe's catalogue: terms, plans, and the faults of whoever typed them."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.catalogue import (
    KEY,
    Catalogue,
    Limit,
    Plan,
    Rules,
    Term,
    key_of,
    parsed,
    price_from,
    product_from,
    read_term,
)
from billing.events import Json
from tests.conftest import IS_SOAK

examples = settings(
    max_examples=1500 if IS_SOAK else 60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],  # the machine may be busy with other tests
)

ENDLESS = Limit(unlimited=True)
NO_SWITCH = "must be true or false"
NO_LIMIT = "must be a number, unlimited, quantity or 10*quantity"


def a_product(id: str = "prod_team", **changes: Any) -> Json:
    """A product as Stripe writes it; `entitles` are lookup keys of the features attached to it."""
    whole: Json = {"name": "Team", "description": None, "active": True, "metadata": {}, "entitles": ()}
    return {"id": id, "object": "product", **whole, **changes}


def a_price(id: str = "price_team", **changes: Any) -> Json:
    """A price as Stripe writes it: 12 dollars a month."""
    whole = {"product": "prod_team", "lookup_key": "team", "active": True, "metadata": {}}
    cost = {"currency": "usd", "unit_amount": 1200, "recurring": monthly()}
    return {"id": id, "object": "price", **whole, **cost, **changes}


def monthly(**changes: Any) -> Json:
    return {"interval": "month", "interval_count": 1, "usage_type": "licensed", **changes}


def sold(*things: Json, features: Collection[str] = ()) -> Catalogue:
    """A catalogue of these products and prices, read as it is kept."""
    products = [product_from(thing, thing["entitles"]) for thing in things if thing["object"] == "product"]
    prices = [price_from(thing) for thing in things if thing["object"] == "price"]
    content = {"products": products, "prices": prices, "features": sorted(features)}
    return parsed(1, json.loads(json.dumps(content)), {})


def team(product: dict[str, str] | None = None, price: dict[str, str] | None = None) -> Catalogue:
    """A catalogue of one plan, with this metadata."""
    return sold(a_product(metadata=product or {}), a_price(metadata=price or {}))


def terms(product: dict[str, str] | None = None, price: dict[str, str] | None = None) -> dict[str, Term]:
    return dict(team(product, price).terms["price_team"])


def faults(catalogue: Catalogue) -> set[tuple[str, str, str]]:
    return {(fault.where, fault.key, fault.sentence) for fault in catalogue.faults}


# ---- one term


@pytest.mark.parametrize("says", ["true", "True", " TRUE ", "true\n"])
def test_a_feature_is_on_where_it_says_true(says: str) -> None:
    assert read_term("feature", says) == Term(True, None, says)


@pytest.mark.parametrize("says", ["false", "False", " false"])
def test_a_feature_is_off_where_it_says_false(says: str) -> None:
    assert read_term("feature", says) == Term(False, None, says)


@pytest.mark.parametrize("says", ["", " ", "yes", "1", "on", "tru", "true false", "10", "\uff54rue"])
def test_a_feature_says_nothing_else(says: str) -> None:
    assert read_term("feature", says) is None


LIMITS = [
    ("50", Limit(50)),
    (" 50 ", Limit(50)),
    ("007", Limit(7)),
    ("9" * 15, Limit(999_999_999_999_999)),
    ("unlimited", ENDLESS),
    ("Unlimited", ENDLESS),
    ("quantity", Limit(per_unit=1)),
    ("QUANTITY", Limit(per_unit=1)),
    ("10*quantity", Limit(per_unit=10)),
    ("10 * quantity", Limit(per_unit=10)),
]


@pytest.mark.parametrize(("says", "limit"), LIMITS, ids=repr)
def test_a_limit_is_a_number_unlimited_or_so_many_for_each(says: str, limit: Limit) -> None:
    assert read_term("limit", says) == Term(True, limit, says)


@pytest.mark.parametrize("says", ["0", "000", "0*quantity"])
def test_a_limit_of_nothing_is_off(says: str) -> None:
    assert read_term("limit", says) == Term(False, Limit(), says)


NO_LIMITS = [
    *("", " ", "fifty", "true", "-1", "+1", "1.5", "1e3", "1_000", "1,000", "0x10", "9" * 16, "٣", "²"),
    *("10*", "*quantity", "quantity*10", "10**quantity", "10 quantity", "-1*quantity", "10*seats"),
    *("unlimited quantity", "5 unlimited", "10*unlimited", "10*10", "10*quantity*2", "ten*quantity"),
]


@pytest.mark.parametrize("says", NO_LIMITS)
def test_a_limit_says_nothing_else(says: str) -> None:
    assert read_term("limit", says) is None


@examples
@given(st.sampled_from(["feature", "limit"]), st.text(st.characters()))
def test_any_words_are_a_term_or_none(kind: str, says: str) -> None:
    term = read_term(kind, says)

    assert term is None or (term.says == says and (term.limit is None) == (kind == "feature"))


# ---- a price's terms


def test_a_price_has_its_products_terms_and_replaces_those_it_speaks_of() -> None:
    found = terms({"feature.sso": "true", "limit.projects": "50"}, {"limit.projects": "unlimited"})

    assert found == {"sso": Term(True, None, "true"), "projects": Term(True, ENDLESS, "unlimited")}


def test_a_price_may_take_what_its_product_gives() -> None:
    assert terms({"feature.sso": "true"}, {"feature.sso": "false"})["sso"] == Term(False, None, "false")


def test_a_price_may_take_a_limited_feature_by_a_bare_false() -> None:
    assert terms({"limit.projects": "50"}, {"feature.projects": "false"})["projects"] == Term(
        False, Limit(), "false"
    )


def test_a_limit_wins_over_a_bare_true() -> None:
    found = terms({"feature.projects": "true", "limit.projects": "50"})

    assert found["projects"] == Term(True, Limit(50), "50")


def test_a_bad_limit_takes_the_bare_true_beside_it() -> None:
    found = terms({"feature.projects": "true", "limit.projects": "fifty"})

    assert found["projects"] == Term(False, Limit(), "fifty")


def test_a_bad_feature_takes_the_limit_beside_it() -> None:
    found = terms({"feature.projects": "yes", "limit.projects": "50"})

    assert found["projects"] == Term(False, Limit(), "yes")


def test_a_bad_word_of_a_price_is_not_mended_by_its_product() -> None:
    assert terms({"limit.projects": "50"}, {"limit.projects": "fifty"})["projects"].enabled is False


def test_a_good_word_of_a_price_mends_its_products() -> None:
    assert terms({"limit.projects": "fifty"}, {"limit.projects": "50"})["projects"].enabled is True


def test_other_metadata_is_no_term_and_no_fault() -> None:
    catalogue = team({"plan": "free", "crm_id": "77", "features.sso": "true", "limits": "10", "Feature.x": "1"})

    assert (dict(catalogue.terms["price_team"]), catalogue.faults) == ({}, ())


def test_a_price_whose_product_is_unknown_has_terms_of_its_own() -> None:
    catalogue = sold(a_price(product="prod_gone", metadata={"feature.sso": "true"}))

    assert catalogue.terms["price_team"]["sso"].enabled is True


def test_a_product_gives_its_own_terms_where_there_is_no_price() -> None:
    catalogue = team({"limit.projects": "3"}, {"limit.projects": "50"})

    assert catalogue.without_price["prod_team"]["projects"].limit == Limit(3)


# ---- faults


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"feature.sso": "yes"}, NO_SWITCH),
        ({"feature.sso": ""}, NO_SWITCH),
        ({"limit.projects": "fifty"}, NO_LIMIT),
        ({"limit.projects": ""}, NO_LIMIT),
        ({"feature.SSO": "true"}, "is no feature's key"),
        ({"feature.": "true"}, "is no feature's key"),
        ({"feature": "true"}, "is no feature's key"),
        ({"limit.a-b": "5"}, "is no feature's key"),
        ({"limit.projects.per_seat": "5"}, "is no feature's key"),
        ({"limit.9lives": "9"}, "is no feature's key"),
        ({f"limit.{'a' * 64}": "9"}, "is no feature's key"),
        ({"feature. sso": "true"}, "is no feature's key"),
    ],
)
def test_what_cannot_be_read_is_a_fault_and_gives_nothing(metadata: dict[str, str], sentence: str) -> None:
    catalogue = team(price=metadata)

    assert faults(catalogue) == {("price_team", next(iter(metadata)), sentence)}
    assert not any(term.enabled for term in catalogue.terms["price_team"].values())


def test_a_fault_of_a_product_is_told_though_every_price_replaces_it() -> None:
    assert faults(team({"limit.projects": "fifty"}, {"limit.projects": "50"})) == {
        ("prod_team", "limit.projects", NO_LIMIT)
    }


def test_each_fault_is_told_once_however_often_they_are_looked_up() -> None:
    catalogue = team({"feature.sso": "yes"})

    assert catalogue.faults == catalogue.faults
    assert [fault.where for fault in catalogue.faults] == ["prod_team"]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("hidden", "yes"),
        ("hidden", ""),
        ("per_seat", "1"),
        ("trial_days", "a month"),
        ("trial_days", "-1"),
        ("min_quantity", "1.5"),
        ("max_quantity", "10000000"),
        ("sort", "first"),
        ("sort", "٣"),
    ],
)
def test_what_a_plan_says_of_its_sale_is_a_fault_where_it_cannot_be_read(word: str, says: str) -> None:
    assert faults(team({word: says}, {word: says})) == {
        (where, word, "cannot be read") for where in ("prod_team", "price_team")
    }


def test_a_default_plan_that_is_no_products_is_a_fault() -> None:
    catalogue = replace(team({"plan": "free"}), rules=Rules(default_plan="gratis"))

    assert faults(catalogue) == {("BILLING_DEFAULT_PLAN", "gratis", "is no product's metadata plan")}
    assert replace(catalogue, rules=Rules(default_plan="free")).faults == ()


def test_a_feature_of_stripes_whose_key_is_none_of_ours_is_a_fault() -> None:
    assert faults(sold(a_product(entitles=["Ünicode", "SSO"]), features=["2fa"])) == {
        ("features", key, "is no feature's key") for key in ("Ünicode", "SSO", "2fa")
    }


def test_features_of_stripes_that_come_to_the_same_key_are_a_fault_each() -> None:
    catalogue = sold(a_product(entitles=["audit-log"]), features=["audit_log", "audit-log", "sso"])

    sentence = "is what 2 features of Stripe's come to"
    assert faults(catalogue) == {("features", "audit_log", sentence)}


def test_a_catalogue_without_faults_tells_none() -> None:
    assert team({"limit.projects": "50", "feature.sso": "false"}).faults == ()


# ---- keys


@pytest.mark.parametrize(
    ("lookup_key", "key"),
    [
        ("sso", "sso"),
        ("audit-log", "audit_log"),
        ("a", "a"),
        ("a" * 63, "a" * 63),
        ("a" * 64, None),
        ("SSO", None),
        ("2fa", None),
        ("-sso", None),
        ("_sso", None),
        ("s so", None),
        ("sso\n", None),
        ("größe", None),
        ("", None),
    ],
)
def test_a_features_key_is_the_one_it_has_at_stripe_without_hyphens(lookup_key: str, key: str | None) -> None:
    assert key_of(lookup_key) == key


def test_every_feature_anything_speaks_of_is_known() -> None:
    catalogue = sold(
        a_product(metadata={"feature.of_a_product": "false"}, entitles=["attached-to-it"]),
        a_price(active=False, lookup_key=None, metadata={"limit.of_an_old_price": "fifty"}),
        features=["of-nothing"],
    )

    assert catalogue.keys == {"of_a_product", "attached_to_it", "of_an_old_price", "of_nothing"}
    assert catalogue.limited == {"of_an_old_price"}


def test_a_feature_is_limited_where_anything_limits_it() -> None:
    catalogue = sold(
        a_product(metadata={"feature.projects": "true"}),
        a_product("prod_old", active=False, metadata={"limit.projects": "0"}),
    )

    assert catalogue.limited == {"projects"}


# ---- plans on offer


def test_a_plan_is_an_active_recurring_price_with_a_key_on_an_active_product() -> None:
    catalogue = team({"limit.projects": "50"})

    assert list(catalogue.plans) == ["team"]
    assert catalogue.plans["team"].terms == {"projects": Term(True, Limit(50), "50")}


NOT_ON_OFFER: dict[str, tuple[Json, Json]] = {
    "without a lookup key": (a_product(), a_price(lookup_key=None)),
    "with an empty one": (a_product(), a_price(lookup_key="")),
    "an inactive price": (a_product(), a_price(active=False)),
    "of an inactive product": (a_product(active=False), a_price()),
    "of an unknown product": (a_product("prod_other"), a_price()),
    "paid once": (a_product(), a_price(recurring=None)),
    "of a hidden product": (a_product(metadata={"hidden": "true"}), a_price()),
    "hidden itself": (a_product(), a_price(metadata={"hidden": " True"})),
}


@pytest.mark.parametrize("things", NOT_ON_OFFER.values(), ids=NOT_ON_OFFER)
def test_nothing_else_is_on_offer(things: tuple[Json, Json]) -> None:
    assert sold(*things).plans == {}


def test_a_price_may_show_itself_though_its_product_hides() -> None:
    assert list(team({"hidden": "true"}, {"hidden": "false"}).plans) == ["team"]


def test_a_price_that_is_not_on_offer_still_gives_what_it_gave() -> None:
    catalogue = sold(a_product(active=False, metadata={"feature.sso": "true"}), a_price(active=False))

    assert catalogue.terms["price_team"]["sso"].enabled is True


def test_plans_stand_as_sorted_then_by_their_price_then_by_their_key() -> None:
    catalogue = sold(
        a_product("prod_unsorted"),
        a_product("prod_badly", metadata={"sort": "first"}),
        a_product("prod_second", metadata={"sort": " 10 "}),
        a_product("prod_first", metadata={"sort": "-9"}),
        a_price("p1", lookup_key="unsorted", product="prod_unsorted", unit_amount=1),
        a_price("p2", lookup_key="badly", product="prod_badly", unit_amount=2),
        a_price("p3", lookup_key="second_dear", product="prod_second", unit_amount=900),
        a_price("p4", lookup_key="second_by_tiers", product="prod_second", unit_amount=None),
        a_price("p5", lookup_key="second_cheap_b", product="prod_second", unit_amount=100),
        a_price("p6", lookup_key="second_cheap_a", product="prod_second", unit_amount=100),
        a_price("p7", lookup_key="first", product="prod_first", unit_amount=10_000),
    )

    assert list(catalogue.plans) == [
        *("first", "second_by_tiers", "second_cheap_a", "second_cheap_b", "second_dear"),
        *("unsorted", "badly"),
    ]


def the_plan(product: dict[str, str], **price: Any) -> Plan:
    return sold(a_product(metadata=product), a_price(**price)).plans["team"]


@pytest.mark.parametrize(
    ("metadata", "per_seat"),
    [
        ({}, False),
        ({"limit.seats": "quantity"}, True),
        ({"limit.projects": "10*quantity"}, True),
        ({"limit.projects": "0*quantity"}, False),
        ({"limit.projects": "10", "limit.files": "unlimited"}, False),
        ({"limit.seats": "quantity", "feature.seats": "false"}, False),
        ({"per_seat": " True"}, True),
        ({"per_seat": "yes"}, False),
        ({"per_seat": "false"}, False),
    ],
)
def test_a_plan_is_bought_by_the_seat_where_a_limit_counts_them_or_it_says_so(
    metadata: dict[str, str], per_seat: bool
) -> None:
    assert the_plan(metadata).per_seat is per_seat


def test_what_is_metered_is_not_bought_by_the_seat() -> None:
    plan = the_plan({"limit.seats": "quantity"}, recurring=monthly(usage_type="metered"))

    assert (plan.per_seat, plan.least, plan.most) == (False, 1, 1)


@pytest.mark.parametrize(
    ("metadata", "least", "most"),
    [
        ({}, 1, 1_000_000),
        ({"min_quantity": "5", "max_quantity": "50"}, 5, 50),
        ({"min_quantity": "0", "max_quantity": "0"}, 1, 1),
        ({"min_quantity": " 5 "}, 5, 1_000_000),
        ({"min_quantity": "many", "max_quantity": "more"}, 1, 1_000_000),
        ({"min_quantity": "-5"}, 1, 1_000_000),
        ({"min_quantity": "10", "max_quantity": "5"}, 10, 10),
        ({"min_quantity": "٣", "max_quantity": "٣"}, 1, 1_000_000),
    ],
)
def test_a_plan_by_the_seat_is_sold_from_its_least_to_its_most(
    metadata: dict[str, str], least: int, most: int
) -> None:
    plan = the_plan({"limit.seats": "quantity", **metadata})

    assert (plan.least, plan.most) == (least, most)


def test_a_plan_that_is_not_bought_by_the_seat_is_sold_once() -> None:
    plan = the_plan({"min_quantity": "5", "max_quantity": "50"})

    assert (plan.least, plan.most) == (1, 1)


@pytest.mark.parametrize(
    ("metadata", "days"),
    [
        ({}, 14),
        ({"trial_days": "30"}, 30),
        ({"trial_days": "0"}, 0),
        ({"trial_days": "731"}, 730),
        ({"trial_days": "9999999"}, 730),
        ({"trial_days": "a month"}, 14),
        ({"trial_days": "-1"}, 14),
        ({"trial_days": ""}, 14),
    ],
)
def test_a_plan_is_tried_as_long_as_it_says_and_as_is_usual_otherwise(
    metadata: dict[str, str], days: int
) -> None:
    assert the_plan(metadata).trial_days(14) == days


def test_a_price_says_how_it_is_sold_before_its_product() -> None:
    said = {"trial_days": "30", "min_quantity": "2", "max_quantity": "9", "per_seat": "false"}
    own = {"trial_days": "7", "min_quantity": "3", "max_quantity": "4", "per_seat": "true"}

    plan = the_plan(said, metadata=own)

    assert (plan.trial_days(0), plan.least, plan.most) == (7, 3, 4)


def test_a_word_of_a_price_that_cannot_be_read_is_as_usual_whatever_its_product_says() -> None:
    assert the_plan({"trial_days": "30"}, metadata={"trial_days": "a week"}).trial_days(14) == 14


# ---- the default plan


def test_the_default_plan_is_the_product_that_is_called_so() -> None:
    catalogue = sold(a_product(), a_product("prod_free", metadata={"plan": "free"}))

    found = catalogue.default("free")

    assert found is not None
    assert found.id == "prod_free"


@pytest.mark.parametrize("plan", ["paid", "", None])
def test_no_product_is_the_default_where_none_is_called_so(plan: str | None) -> None:
    assert sold(a_product(), a_product("prod_free", metadata={"plan": "free"})).default(plan) is None


def test_of_two_default_plans_the_active_one_counts() -> None:
    old = a_product("prod_a", active=False, metadata={"plan": "free"})
    catalogue = sold(
        old, a_product("prod_c", metadata={"plan": "free"}), a_product("prod_b", metadata={"plan": "free"})
    )

    found = catalogue.default("free")

    assert found is not None
    assert found.id == "prod_b"


# ---- as Stripe writes it


def test_what_is_kept_of_a_price_is_what_plans_need() -> None:
    whole = a_price(product=a_product(), metadata={"limit.seats": "quantity"}, livemode=False, tiers_mode=None)

    assert price_from(whole) == {
        "id": "price_team",
        "product": "prod_team",
        "lookup_key": "team",
        "active": True,
        "currency": "usd",
        "amount": 1200,
        "interval": "month",
        "interval_count": 1,
        "metered": False,
        "metadata": {"limit.seats": "quantity"},
    }


def test_what_is_kept_of_a_product_is_what_plans_need() -> None:
    whole = a_product(description="For teams", metadata={"plan": "team"}, images=[], livemode=False)

    assert product_from(whole, ["sso", "audit-log"]) == {
        "id": "prod_team",
        "name": "Team",
        "description": "For teams",
        "active": True,
        "metadata": {"plan": "team"},
        "entitles": ["audit-log", "sso"],
    }


@pytest.mark.parametrize("unusable", [{"id": None}, {"id": ""}, {"id": 7}, {"product": None}, {"product": {}}])
def test_a_price_without_id_or_product_is_not_kept(unusable: Json) -> None:
    assert price_from({**a_price(), **unusable}) is None


@pytest.mark.parametrize("id", [None, "", 7])
def test_a_product_without_id_is_not_kept(id: Any) -> None:
    assert product_from({**a_product(), "id": id}) is None


def test_words_are_kept_without_what_no_column_takes() -> None:
    kept = product_from(a_product(name="Te\0am", metadata={"feature.sso": "tr\0ue", "note": "\ud800"}))

    assert kept is not None
    assert (kept["name"], kept["metadata"]) == ("Team", {"feature.sso": "true", "note": "?"})


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
words = st.text(st.characters(), max_size=8)
kinds = st.sampled_from(["feature.", "limit.", ""])
scribbled_terms = st.dictionaries(st.builds(str.__add__, kinds, words), words)
scribbles = st.dictionaries(
    st.sampled_from(
        ["name", "description", "active", "metadata", "lookup_key", "currency", "unit_amount", "recurring"]
    ),
    anything | st.dictionaries(st.sampled_from(["interval", "interval_count", "usage_type"]), anything),
)


@examples
@given(scribbles, scribbles, scribbled_terms)
def test_whatever_stands_in_a_catalogue_can_be_kept_and_read(
    product: Json, price: Json, metadata: dict[str, str]
) -> None:
    catalogue = sold({**a_product(metadata=metadata), **product}, {**a_price(), **price})

    assert catalogue.faults == catalogue.faults
    assert all(KEY.fullmatch(key) for key in catalogue.keys)
    assert all(1 <= plan.least <= plan.most for plan in catalogue.plans.values())
