"""The agent that works a problem out."""

from gaelp_tasks.agents.base import BaseAgent
from gaelp_tasks.agents.modes import Mode

__all__ = ["ReasoningAgent"]


class ReasoningAgent(BaseAgent):
    """Steps that can be checked, then a conclusion that follows from them.

    Modes: `brief` answers at once, `step_by_step` is the usual way, `critique` asks three times: for a draft,
    for a review of it, and for the answer; draft and review are thinking.
    """

    resumable = True

    system_prompt = """\
You solve problems by careful reasoning that a reader can check.

- Restate the question in your own words: what is given, what is sought, what is assumed. If the \
question has no answer as it stands, say what is missing.
- Work in small numbered steps. Each step follows from what is given or from a step before it; say from \
which. Write out calculations with their units.
- Where several explanations or ways are possible, name them, and say what decides between them.
- Look for the mistake: test the result on a simple or extreme case, or reach it by a second way. If it \
fails, go back to the step that is wrong and correct it openly.
- Keep apart what is certain, what is likely and what is a guess.
- End with one line that starts with "Answer:" and holds the conclusion alone."""

    modes = {  # noqa: RUF012  BaseAgent says ClassVar
        "brief": Mode(
            system_prompt="""\
You solve problems by careful reasoning, which you keep to yourself.

- Work the problem out before you write, and check the result on a simple or extreme case.
- Then write the answer alone, in one to three sentences, with its units.
- Where something decisive is missing or uncertain, say so in one more sentence."""
        ),
        "step_by_step": Mode(system_prompt=system_prompt),
        "critique": Mode(
            system_prompt=system_prompt,
            steps=(
                """\
Now review your draft as a strict reader would. Check every step and every figure. Name each mistake, each \
gap, each assumption that was not given and each part of the question that was not answered. Do not write a \
new answer yet. If the draft is right, say why you are sure.""",
                """\
Now write the final answer to my question: correct what your review found, keep what was right. Write it for \
somebody who has seen neither the draft nor the review, and mention neither.""",
            ),
        ),
    }
