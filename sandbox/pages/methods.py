"""What somebody can choose to pay by: test payment methods, each by what comes of it."""

from dataclasses import dataclass

from sandbox.errors import Refusal
from sandbox.pages import words
from sandbox.resources import payment_methods
from sandbox.store import Json, Store


@dataclass(frozen=True)
class Choice:
    id: str
    title: str
    explanation: str


def card(id: str, title: str, outcome: str = "") -> Choice:
    brand, last4 = payment_methods.CARDS[id]
    return Choice(id, title, f"{brand.title()} ending in {last4}. {outcome}".rstrip())


PAYS = card("pm_card_visa", "A card that pays")
ALSO_PAYS = card("pm_card_mastercard", "Another card that pays")
ASKS = card("pm_card_threeDSecureRequired", "A card with 3-D Secure", "The next page asks its holder.")
FAILS = card(
    "pm_card_chargeCustomerFail", "A card that fails later", "It can be saved, and no payment succeeds."
)
IS_DECLINED = card("pm_card_visa_chargeDeclined", "A card that is declined", "It cannot even be saved.")

BANKS = [
    Choice(
        id,
        f"{words.METHODS[type]} that settles later",
        "Whether the bank pays is decided on the sandbox's control page.",
    )
    for id, (type, _) in payment_methods.BANK_ACCOUNTS.items()
]

NOTHING = Choice("", "Nothing yet", "No payment method is needed to begin.")


def chosen(among: list[Choice], id: str | None) -> str:
    """The id, which was among what was offered."""
    if id is None or id not in [choice.id for choice in among]:
        raise Refusal("Choose one of the payment methods.", param="payment_method")
    return id


def of_customer(store: Store, customer: str) -> list[Json]:
    methods = store.collection(payment_methods.KIND).values()
    return [method for method in methods if method["customer"] == customer]
