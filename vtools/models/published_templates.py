"""The published prompt formats as Jinja chat templates, and the texts that end an answer."""

_SYSTEM = "{% if messages and messages[0].role == 'system' %}{{ messages[0].content }}{% else %}SYSTEM{% endif %}"
_CHECK = (
    "{% for message in messages %}{% if message.role == 'system' and not loop.first %}"
    "{{ raise_exception('a system message is not the first') }}{% endif %}{% endfor %}"
)
_CHAT = "A chat between a curious {0} and an artificial intelligence assistant. "
_POLITE = "The assistant gives helpful, detailed, and polite answers to the {0}'s questions."

# The formats are facts: the models were trained on exactly these strings.
SOURCES = {
    "vicuna-v1.1": _CHECK
    + "{{ bos_token }}"
    + _SYSTEM.replace("SYSTEM", (_CHAT + _POLITE).format("user"))
    + "{% for message in messages %}{% if message.role == 'user' %}"
    "{% if loop.first or loop.index0 == 1 and messages[0].role == 'system' %} {% endif %}"
    "USER: {{ message.content }} ASSISTANT:"
    "{% elif message.role == 'assistant' %} {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}",
    "vicuna-v0": _CHECK
    + "{{ bos_token }}"
    + _SYSTEM.replace("SYSTEM", (_CHAT + _POLITE).format("human"))
    + "{{ '\\n\\n###' }}{% for message in messages %}{% if message.role == 'user' %}"
    " Human: {{ message.content }}{{ '\\n### Assistant:' }}"
    "{% elif message.role == 'assistant' %} {{ message.content }}{{ '\\n###' }}{% endif %}{% endfor %}",
    "alpaca": _CHECK
    + "{{ bos_token }}"
    + _SYSTEM.replace(
        "SYSTEM",
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    )
    + "{% for message in messages %}{% if message.role == 'user' %}"
    "{{ '\\n\\n### Instruction:\\n' }}{{ message.content }}{{ '\\n\\n### Response:\\n' }}"
    "{% elif message.role == 'assistant' %}{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}",
    "llama-2": _CHECK + "{% for message in messages %}{% if message.role == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.index0 == 1 and messages[0].role == 'system' %}"
    "{{ '<<SYS>>\\n' }}{{ messages[0].content }}{{ '\\n<</SYS>>\\n\\n' }}{% endif %}"
    "{{ message.content }} [/INST]"
    "{% elif message.role == 'assistant' %} {{ message.content }} {{ eos_token }}{% endif %}{% endfor %}",
    "chatml": "{% for message in messages %}{{ '<|im_start|>' }}{{ message.role }}{{ '\\n' }}{{ message.content }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
}
STOP_STRINGS = {"vicuna-v0": ("###",)}
