"""What operators ask and what they do, each once: as dataclasses, which the console writes as HTML and the
commands as text or JSON.

`overview` is what needs attention, `health` what the doctor finds, `events` the inbox, `tenants` one tenant's
whole story and who they are, `repairs` what puts one right, `grants` what operators grant one, `plans` what is
sold, `consumers` who reads the feed and with which token, `trail` who did what. A question reads and changes
nothing. An action takes `By`, who does it and why, and leaves a row in the trail in the transaction that does
it. Lists come as a `Page`, by keyset: the millionth page costs what the first does.
"""
